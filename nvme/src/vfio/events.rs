//! What the kernel reports about the device itself, as two eventfds.
//!
//! Guarantees: nothing blocks; an event that comes several times before it is looked at is one. The kernel repeats
//! its request for the device every 10 s until it has it, so that a request is never missed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vfio_bindings::bindings::vfio::{VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};

use crate::hardware::HardwareEvent;

use super::kernel;

/// The event channels of a device: those that it has.
#[derive(Debug)]
pub(super) struct Events(Vec<(HardwareEvent, EventFd)>);

impl Events {
    /// Asks the kernel to report. A device that is not PCI Express reports no errors.
    pub(super) fn new(device: &File) -> io::Result<Self> {
        let mut channels = Vec::with_capacity(2);
        for (event, index) in [
            (HardwareEvent::RemovalRequested, VFIO_PCI_REQ_IRQ_INDEX),
            (HardwareEvent::Error, VFIO_PCI_ERR_IRQ_INDEX),
        ] {
            if kernel::interrupts(device, index) == 0 {
                log::debug!("the device does not report {event:?}");
                continue;
            }
            let channel = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            kernel::signal(device, index, channel.as_fd())?;
            channels.push((event, channel));
        }
        Ok(Self(channels))
    }

    /// The next event. One that was reported is not reported again before it happens again.
    pub(super) fn next(&self) -> Option<HardwareEvent> {
        let happened = |channel: &EventFd| channel.read().is_ok_and(|times| times > 0);
        self.0.iter().find(|(_, channel)| happened(channel)).map(|(event, _)| *event)
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, channel)| channel.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> EventFd {
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
    }

    #[test]
    fn each_event_is_told_once_and_removal_first() {
        let events = Events(vec![
            (HardwareEvent::RemovalRequested, channel()),
            (HardwareEvent::Error, channel()),
        ]);
        assert_eq!(events.next(), None);
        for (_, channel) in &events.0 {
            channel.write(1).unwrap();
            channel.write(1).unwrap();
        }
        assert_eq!(events.next(), Some(HardwareEvent::RemovalRequested));
        assert_eq!(events.next(), Some(HardwareEvent::Error));
        assert_eq!(events.next(), None);
        assert_eq!(events.fds().count(), 2);
    }

    #[test]
    fn a_device_without_channels_has_no_events() {
        let events = Events::new(&File::open("/dev/null").unwrap()).unwrap();
        assert_eq!((events.next(), events.fds().count()), (None, 0));
    }
}
