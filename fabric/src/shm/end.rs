//! One side's stream: two rings as a non-blocking stream of bytes.

use super::layout::{CLIENT, SERVER, TO_CLIENT, TO_SERVER};
use super::port::Port;
use super::ring::{Consumer, Producer};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::sync::Arc;

/// A stream over shared memory. Indices that the peer cannot have end in
/// [`ErrorKind::InvalidData`].
#[derive(Debug)]
pub struct End {
    pub(super) port: Arc<Port>,
    input: Consumer,
    output: Producer,
}

impl End {
    pub(super) fn of_client(port: Arc<Port>) -> Self {
        let input = Consumer::new(TO_CLIENT, SERVER.tail, CLIENT.head);
        Self { port, input, output: Producer::new(TO_SERVER, CLIENT.tail, SERVER.head) }
    }

    pub(super) fn of_server(port: Arc<Port>) -> Self {
        let input = Consumer::new(TO_SERVER, CLIENT.tail, SERVER.head);
        Self { port, input, output: Producer::new(TO_CLIENT, SERVER.tail, CLIENT.head) }
    }
}

impl Read for End {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(into)])
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let Self { port, input, .. } = self;
        let over = port.is_over();
        input.look(&port.map)?;
        let mut total = 0;
        for slice in slices {
            let count = input.take(&port.map, slice);
            total += count;
            if count < slice.len() {
                break;
            }
        }
        match total {
            0 if over => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            total => {
                input.publish(&port.map);
                port.wake_for_room();
                Ok(total)
            }
        }
    }
}

impl Write for End {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(from)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let Self { port, output, .. } = self;
        if port.is_hung() {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let (mut total, mut blocked) = (0, false);
        for slice in slices {
            let count = output.put(&port.map, slice)?;
            total += count;
            if count < slice.len() {
                blocked = true;
                break;
            }
        }
        port.set_blocked(blocked);
        if total == 0 && blocked {
            return Err(ErrorKind::WouldBlock.into());
        }
        output.publish(&port.map);
        port.wake_for_input();
        Ok(total)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.port.close();
    }
}
