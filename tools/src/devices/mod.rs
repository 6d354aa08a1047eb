//! `forebay devices`: the NVMe drives of this machine, who has them, how they are.
//!
//! Guarantees: looking changes nothing, but that a drive with vfio-pci that nobody drives is brought up,
//! and so reset, by `smart`, `identify`, `format` and `list --ask`; what changes something else shows
//! it first, and does it only when told so; a drive in use is left alone whatever was typed; every
//! binding can be undone, and one that was interrupted too. Formatting a drive is the one thing that cannot be undone: it needs the
//! drive's serial number, typed.
//!
//! What breaks it: another program that does the same to the same drive in the same moment.

mod admin;
mod binding;
mod daemon;
mod drive;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_controller;
mod fields;
mod guard;
mod holder;
mod identify;
mod lba;
mod list;
mod machine;
mod own;
mod plan;
mod smart;
#[cfg(test)]
mod tests;

use crate::context::Context;
use crate::exit::{Code, Failure};
use clap::Subcommand;
use drive::Drive;
use guard::Danger;
use machine::Host;

/// Where a daemon has its admin socket unless its configuration says otherwise.
const ADMIN_SOCKET: &str = "/run/forebay/admin.sock";

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show every NVMe drive: what it is, how it is, who has it
    List(list::Args),
    /// Take drives from the kernel, for a daemon with driver = "vfio" (shows it; --yes does it)
    Bind(binding::BindArgs),
    /// Give drives back to the kernel (shows it; --yes does it)
    Unbind(binding::UnbindArgs),
    /// Show a drive's health: warnings, wear, temperature, errors
    Smart(smart::Args),
    /// Show what a drive says of itself (every field with -o json)
    Identify(identify::Args),
    /// Give a drive another LBA format; all its data is lost (shows it; --confirm SERIAL does it)
    Format(lba::Args),
}

pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    let mut host = Host::new();
    let told = match &args.command {
        Command::List(args) => list::list(args, &host)?,
        Command::Bind(args) => binding::bind(args, &mut host)?,
        Command::Unbind(args) => binding::unbind(args, &mut host)?,
        Command::Smart(args) => smart::smart(args, &host)?,
        Command::Identify(args) => identify::identify(args, &host)?,
        Command::Format(args) => lba::format(args, &host)?,
    };
    context.emit(&told.json, || told.text)
}

/// Every `--confirm` has to be the serial number of a drive that was named.
fn known_serials<'a>(
    confirm: &[String],
    serials: impl Iterator<Item = Option<&'a str>>,
) -> anyhow::Result<()> {
    let serials: Vec<&str> = serials.flatten().collect();
    match confirm.iter().find(|serial| !serials.contains(&serial.trim())) {
        None => Ok(()),
        Some(stray) => {
            let what = format!("--confirm {stray} is the serial number of none of these drives");
            Err(Failure::new(Code::Usage, what).into())
        }
    }
}

fn is_confirmed(confirm: &[String], serial: Option<&str>) -> bool {
    serial.is_some_and(|serial| confirm.iter().any(|typed| typed.trim() == serial))
}

/// Dangers as refusals of a drive.
fn told<'a>(drive: &Drive, dangers: impl Iterator<Item = &'a Danger>) -> Vec<String> {
    let hint = |danger: &Danger| match danger {
        Danger::InUse(_) => "free it first",
        Danger::Holds(_) => "type its serial number to take it all the same: --confirm SERIAL",
    };
    let tell = |danger: &Danger| {
        format!("{}{}: {} ({})", drive.address, name(drive), danger.text(), hint(danger))
    };
    dangers.map(tell).collect()
}

/// Model and serial number behind an address, where they are known.
fn name(drive: &Drive) -> String {
    let known = drive.controller.as_ref();
    let parts = known.map(|known| [known.model.as_deref(), known.serial.as_deref()]);
    let parts: Vec<&str> = parts.into_iter().flatten().flatten().collect();
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
}
