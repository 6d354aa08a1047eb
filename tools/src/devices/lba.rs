//! `forebay devices format`: gives a drive's namespace another LBA format. **All its data is lost.**
//!
//! Guarantees: no command is sent unless the drive's serial number was typed; never to a drive that is
//! in use; never to a format that Forebay cannot drive (with metadata); what the drive says
//! afterwards is compared with what was asked. The disks stay claimed until it is over.
//!
//! A drive that vfio-pci has is brought up for it, which resets it, and what it holds is not looked at.
//!
//! What breaks it: a namespace that other hosts can reach too; that it is shared is said.

use super::admin::{self, AdminPath};
use super::binding::Told;
use super::drive::Drive;
use super::guard;
use super::holder::Holders;
use super::identify::{self, lba};
use super::machine::Machine;
use crate::exit::{Code, Failure};
use crate::output;
use crate::progress::Progress;
use forebay_config::units;
use forebay_nvme::pci::PciAddress;
use forebay_nvme::spec::command::{SecureErase, Submission};
use forebay_nvme::spec::identify::{IdentifyController, IdentifyNamespace};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The drive, as `forebay devices list` names it
    #[arg(value_name = "ADDRESS")]
    address: PciAddress,
    /// The number of the LBA format, as `forebay devices identify` shows them
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(0..64))]
    #[arg(required_unless_present = "block_size", conflicts_with = "block_size")]
    lba_format: Option<u8>,
    /// The best LBA format with blocks of this size, like 4096 or 4KiB
    #[arg(long, value_name = "BYTES", value_parser = block_size)]
    block_size: Option<u64>,
    /// What happens to the data that was there
    #[arg(long, value_enum, default_value = "none")]
    secure_erase: Erase,
    /// Which namespace, where there are several
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    namespace: Option<u32>,
    /// Type the drive's serial number to do it; without this, only show what would be done
    #[arg(long, value_name = "SERIAL")]
    confirm: Option<String>,
}

/// What a format promises about the data that was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Erase {
    /// Nothing: it cannot be read any more, but may still be in the flash
    None,
    /// It is overwritten or erased
    User,
    /// The key that it was encrypted with is destroyed
    Crypto,
}

fn block_size(text: &str) -> Result<u64, String> {
    let bytes = text.parse().ok().or_else(|| units::parse_size(text));
    bytes.ok_or_else(|| format!("{text} is no size; write one like 4096 or 4KiB"))
}

/// What is to be done.
struct Task {
    nsid: u32,
    format: u8,
    erase: Erase,
    /// What else there is to know.
    notes: Vec<String>,
    from: String,
    to: String,
    /// It has the format already, and nothing is to be erased.
    needless: bool,
}

pub(super) fn format(args: &Args, machine: &impl Machine) -> anyhow::Result<Told> {
    let drive = Drive::at(machine.system(), args.address)?;
    let look = guard::look(machine, &drive, &Holders::scan(machine.system()))?;
    let in_use = look.dangers.iter().filter(|danger| danger.stands(true));
    let refused = super::told(&drive, in_use);
    if !refused.is_empty() {
        return Err(refuse(format!("{}. Nothing was sent", refused.join("; "))));
    }
    let mut path = machine.admin(&drive)?;
    let controller = admin::identify_controller(&mut *path)?;
    let mut task = Task::plan(args, &controller, &identify::namespaces(&mut *path)?)?;
    task.notes.extend(look.dangers.iter().map(|danger| danger.text().to_owned()));
    task.notes.extend(look.notes.iter().cloned());
    let serial = controller.serial();
    let sent = match &args.confirm {
        Some(typed) if typed.trim() == serial && !serial.is_empty() => {
            if !task.needless {
                task.send(&mut *path)?;
                // Otherwise the kernel gets to it some time, and shows what is gone until then.
                if let Err(error) = look.reread(machine) {
                    log::warn!("the kernel may still show old partitions: {error}");
                }
            }
            true
        }
        Some(typed) => {
            let what = format!("--confirm {typed} is not the serial number of {}", args.address);
            return Err(Failure::new(Code::Usage, what).into());
        }
        None => false,
    };
    Ok(task.told(args.address, &controller, sent))
}

fn refuse(what: String) -> anyhow::Error {
    Failure::new(Code::Refused, what).into()
}

type Namespaces = [(u32, Box<IdentifyNamespace>)];

impl Task {
    fn plan(
        args: &Args,
        controller: &IdentifyController,
        namespaces: &Namespaces,
    ) -> anyhow::Result<Self> {
        if !controller.has_format() {
            return Err(refuse(format!("{} has no Format NVM command", args.address)));
        }
        if args.secure_erase == Erase::Crypto && !controller.has_cryptographic_erase() {
            let what = "has no cryptographic erase; take --secure-erase user";
            return Err(refuse(format!("{} {what}", args.address)));
        }
        let (nsid, namespace) = choose(args, namespaces)?;
        let format = choose_format(args, namespace)?;
        let now = namespace.lba_format();
        Ok(Self {
            nsid,
            format,
            erase: args.secure_erase,
            notes: notes(args, controller, namespaces, namespace),
            from: lba(&now, namespace.protected()),
            to: lba(&namespace.lbaf[usize::from(format)], false),
            needless: args.secure_erase == Erase::None
                && format == namespace.lba_format_index()
                && !namespace.protected(),
        })
    }

    /// Sends the command and looks at what came of it.
    fn send(&self, path: &mut dyn AdminPath) -> anyhow::Result<()> {
        let erase = match self.erase {
            Erase::None => SecureErase::None,
            Erase::User => SecureErase::UserData,
            Erase::Crypto => SecureErase::Cryptographic,
        };
        let progress = Progress::of_count(100, "formatting, percent");
        let command = Submission::format_nvm(self.nsid, self.format, erase);
        path.admin_long(command, &mut |path| {
            // A drive that is busy with the format may not answer; then the bar stays where it is.
            let now = admin::identify_namespace(path, self.nsid).ok();
            let left = now.and_then(|namespace| namespace.format_percent_left());
            progress.set(100 - u64::from(left.unwrap_or(100).min(100)));
        })?;
        progress.finish();
        let now = admin::identify_namespace(path, self.nsid)?;
        if now.lba_format_index() == self.format && !now.protected() {
            return Ok(());
        }
        let found = lba(&now.lba_format(), now.protected());
        let what = format!("the drive took the command, but its LBA format is {found} now");
        Err(Failure::new(Code::Failure, what).into())
    }

    fn told(&self, address: PciAddress, controller: &IdentifyController, sent: bool) -> Told {
        let Self { nsid, format, from, to, .. } = self;
        let name = format!("{address} ({}, {})", controller.model(), controller.serial());
        let json = json!({
            "pci": address.to_string(),
            "serial": controller.serial(),
            "nsid": nsid,
            "lba_format": format,
            "from": from,
            "to": to,
            "notes": self.notes,
            "needless": self.needless,
            "sent": sent && !self.needless,
        });
        let text = match sent {
            _ if self.needless => {
                format!("{name}: namespace {nsid} has LBA format {from} already\n")
            }
            true => format!("{name}: namespace {nsid} has LBA format {to} now; it is empty\n"),
            false => self.preview(&name),
        };
        Told { json, text }
    }

    fn preview(&self, name: &str) -> String {
        let Self { nsid, format, from, to, .. } = self;
        let mut text = format!(
            "{name}: namespace {nsid} from LBA format {from} to {to} (number {format})\n  \
             all its data is lost, and that cannot be undone\n"
        );
        self.notes.iter().for_each(|note| text += &format!("  {note}\n"));
        text + "Nothing was sent. To do it, type the drive's serial number: --confirm SERIAL\n"
    }
}

fn choose<'a>(
    args: &Args,
    namespaces: &'a Namespaces,
) -> anyhow::Result<(u32, &'a IdentifyNamespace)> {
    let address = args.address;
    let numbers: Vec<String> = namespaces.iter().map(|(nsid, _)| nsid.to_string()).collect();
    let numbers = numbers.join(", ");
    let wrong = |code, what: String| Failure::new(code, what).into();
    match (args.namespace, namespaces) {
        (_, []) => Err(wrong(Code::NotFound, format!("{address} has no active namespace"))),
        (None, [(nsid, namespace)]) => Ok((*nsid, &**namespace)),
        (None, _) => {
            let what =
                format!("{address} has several namespaces; say which: --namespace {numbers}");
            Err(wrong(Code::Usage, what))
        }
        (Some(wanted), _) => {
            let found = namespaces.iter().find(|(nsid, _)| *nsid == wanted);
            let found = found.map(|(nsid, namespace)| (*nsid, &**namespace));
            let what = format!("{address} has no namespace {wanted}; it has {numbers}");
            found.ok_or_else(|| wrong(Code::NotFound, what))
        }
    }
}

/// The format that was named, or the fastest of the size that was.
fn choose_format(args: &Args, namespace: &IdentifyNamespace) -> anyhow::Result<u8> {
    let formats = namespace.lba_formats();
    let plain = |index: &usize| formats[*index].metadata_bytes() == 0;
    let shown = || {
        let shown = formats.iter().enumerate();
        let shown = shown.map(|(index, format)| format!("{index}: {}", lba(format, false)));
        shown.collect::<Vec<_>>().join(", ")
    };
    let found = match args.lba_format.map(usize::from) {
        Some(index) if index < formats.len() && !plain(&index) => {
            let what = "has metadata behind its blocks, which Forebay does not drive";
            return Err(refuse(format!("LBA format {index} {what}; there are {}", shown())));
        }
        Some(index) => Some(index).filter(|index| *index < formats.len()),
        None => {
            let size = |index: &usize| formats[*index].bytes().map(u64::from) == args.block_size;
            let fitting = (0..formats.len()).filter(size).filter(plain);
            fitting.min_by_key(|index| formats[*index].relative_performance())
        }
    };
    let found = found.and_then(|index| u8::try_from(index).ok());
    let what = || format!("{} has no such LBA format; there are {}", args.address, shown());
    found.ok_or_else(|| Failure::new(Code::NotFound, what()).into())
}

/// What the command does beside what was asked, and who else may mind.
fn notes(
    args: &Args,
    controller: &IdentifyController,
    namespaces: &Namespaces,
    namespace: &IdentifyNamespace,
) -> Vec<String> {
    let mut notes = Vec::new();
    let erases = args.secure_erase != Erase::None && controller.erases_all_namespaces();
    if namespaces.len() > 1 && (controller.formats_all_namespaces() || erases) {
        notes
            .push(format!("this drive formats all of its {} namespaces at once", namespaces.len()));
    }
    if namespace.shared() {
        notes.push("the namespace is shared: other controllers, and hosts, may use it".to_owned());
    }
    if args.secure_erase == Erase::User {
        let size = namespace.bytes().map_or("it".to_owned(), output::bytes);
        notes.push(format!("erasing {size} may take hours"));
    }
    notes
}
