//! `forebay devices bind` and `unbind`: who drives a controller.
//!
//! Guarantees: nothing is written without `--yes`, and nothing at all unless every drive that was
//! named may be taken; what is in use now is never taken, whatever was typed; each drive's claims
//! last until the kernel's driver has let go of it.

use super::drive::Drive;
use super::guard::{self, Look};
use super::holder::Holders;
use super::machine::Machine;
use super::plan::{self, Plan};
use crate::exit::{Code, Failure};
use anyhow::Context as _;
use forebay_nvme::pci::PciAddress;
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct BindArgs {
    /// The drives, as `forebay devices list` names them
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<PciAddress>,
    /// Do it; without this, only show what would be written where
    #[arg(long)]
    yes: bool,
    /// Type a drive's serial number to take it although it holds something (once for each)
    #[arg(long, value_name = "SERIAL")]
    confirm: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct UnbindArgs {
    /// The drives, as `forebay devices list` names them
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<PciAddress>,
    /// Do it; without this, only show what would be written where
    #[arg(long)]
    yes: bool,
}

/// One drive's part of the command.
struct Job {
    drive: Drive,
    plan: Plan,
    look: Look,
}

/// What a command says in the end.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) json: Value,
    pub(super) text: String,
}

pub(super) fn bind(args: &BindArgs, machine: &mut impl Machine) -> anyhow::Result<Told> {
    let drives = drives(&args.addresses, machine)?;
    super::known_serials(&args.confirm, drives.iter().map(Drive::serial))?;
    let holders = Holders::scan(machine.system());
    let (mut jobs, mut refused) = (Vec::new(), Vec::new());
    for drive in drives {
        let address = drive.address;
        match plan::bind(machine.system(), &drive, &args.addresses) {
            Err(reasons) => refused.extend(reasons.iter().map(|why| format!("{address} {why}"))),
            Ok(plan) if plan.steps.is_empty() => {
                jobs.push(Job { drive, plan, look: Look::default() });
            }
            Ok(plan) => {
                let confirmed = super::is_confirmed(&args.confirm, drive.serial());
                let look = guard::look(machine, &drive, &holders)?;
                let stand = look.dangers.iter().filter(|danger| danger.stands(confirmed));
                refused.extend(super::told(&drive, stand));
                jobs.push(Job { drive, plan, look });
            }
        }
    }
    finish("bind", jobs, refused, args.yes, machine)
}

pub(super) fn unbind(args: &UnbindArgs, machine: &mut impl Machine) -> anyhow::Result<Told> {
    let holders = Holders::scan(machine.system());
    let (mut jobs, mut refused) = (Vec::new(), Vec::new());
    for drive in drives(&args.addresses, machine)? {
        let address = drive.address;
        match (plan::unbind(machine.system(), &drive), driven(machine, &drive, &holders)) {
            (Err(why), _) => refused.push(format!("{address} {why}")),
            (Ok(_), Some(how)) => refused.push(format!("{address} is {how}; stop that first")),
            (Ok(plan), None) => jobs.push(Job { drive, plan, look: Look::default() }),
        }
    }
    finish("unbind", jobs, refused, args.yes, machine)
}

/// Who drives a drive that is with vfio-pci. The kernel would wait for them in the middle of an unbind.
fn driven(machine: &impl Machine, drive: &Drive, holders: &Holders) -> Option<String> {
    let group = drive.vfio_group(machine.system())?;
    if let Some(holder) = holders.first(&drive.nodes(machine.system())) {
        return Some(format!("driven by {holder}"));
    }
    // The group's file is closed again before anything is written.
    let what = "driven by a process that is not seen here (in a container?): it has";
    machine.is_taken(&group).then(|| format!("{what} {} open", group.display()))
}

/// The drives at `addresses`, each once.
fn drives(addresses: &[PciAddress], machine: &impl Machine) -> anyhow::Result<Vec<Drive>> {
    let mut drives: Vec<Drive> = Vec::new();
    for address in addresses {
        if drives.iter().any(|drive| drive.address == *address) {
            return Err(Failure::new(Code::Usage, format!("{address} is named twice")).into());
        }
        drives.push(Drive::at(machine.system(), *address)?);
    }
    Ok(drives)
}

/// Refuses, shows, or does.
fn finish(
    verb: &str,
    jobs: Vec<Job>,
    refused: Vec<String>,
    yes: bool,
    machine: &mut impl Machine,
) -> anyhow::Result<Told> {
    if !refused.is_empty() {
        let told = refused.join("; ");
        return Err(Failure::new(Code::Refused, format!("{told}. Nothing was written")).into());
    }
    let shown: Vec<Value> = jobs.iter().map(|job| job.json(yes)).collect();
    let mut text = if yes { String::new() } else { dry_run(verb, &jobs) };
    for mut job in jobs.into_iter().filter(|_| yes) {
        let done = job.plan.carry_out(machine, || job.look.release());
        // The drives before it are told too: they stay as they are now.
        done.with_context(|| format!("{text}{}", job.plan.address))?;
        text += &job.done(verb);
    }
    Ok(Told { json: json!({ "written": yes, "drives": shown }), text })
}

fn dry_run(verb: &str, jobs: &[Job]) -> String {
    let mut text: String = jobs.iter().map(Job::preview).collect();
    let open = jobs.iter().filter(|job| !job.plan.steps.is_empty());
    let open: Vec<String> = open.map(|job| job.drive.address.to_string()).collect();
    if !open.is_empty() {
        let again = format!("forebay devices {verb} {} --yes", open.join(" "));
        text += &format!("Nothing was written. To do it: the same with --yes ({again})\n");
    }
    text
}

impl Job {
    fn preview(&self) -> String {
        let Plan { address, driver, ref steps } = self.plan;
        if steps.is_empty() {
            return format!("{address} is with {driver} already\n");
        }
        let from = self.drive.driver.as_deref().unwrap_or("no driver");
        let name = super::name(&self.drive);
        let mut text = format!("{address}{name}: from {from} to {driver}\n");
        steps.iter().for_each(|step| text += &format!("  {step}\n"));
        let noted = self.look.dangers.iter();
        noted.for_each(|danger| text += &format!("  although {}\n", danger.text()));
        text
    }

    fn done(&self, verb: &str) -> String {
        let Plan { address, driver, ref steps } = self.plan;
        let already = if steps.is_empty() { " already" } else { "" };
        let undo = if verb == "bind" { "unbind" } else { "bind" };
        format!(
            "{address} is with {driver}{already} (to undo: forebay devices {undo} {address} --yes)\n"
        )
    }

    fn json(&self, written: bool) -> Value {
        let steps: Vec<String> = self.plan.steps.iter().map(ToString::to_string).collect();
        let dangers: Vec<&str> = self.look.dangers.iter().map(guard::Danger::text).collect();
        json!({
            "pci": self.plan.address.to_string(),
            "serial": self.drive.serial(),
            "from": self.drive.driver,
            "to": self.plan.driver,
            "steps": steps,
            "holds": dangers,
            "driver": if written { Some(self.plan.driver) } else { self.drive.driver.as_deref() },
        })
    }
}
