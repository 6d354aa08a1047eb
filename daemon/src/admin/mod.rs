//! The admin socket: a Unix socket on the main thread that tells how the daemon is.
//!
//! One request per line, a JSON string (`"status"`, `"namespaces"`, `"devices"`,
//! `"drain"`); one line of JSON for
//! each answer. Only the daemon's own user may connect (mode 0600). A client that does not read or
//! does not end its line is dropped; it can delay the main thread by [`WRITE_TIMEOUT`], and the data
//! path not at all.

use nix::poll::{PollFd, PollFlags};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most clients at a time.
const CLIENTS_MAX: usize = 16;
/// The longest request, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
/// How long a client may take to read an answer.
const WRITE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// How are you?
    Status,
    /// What namespaces are there?
    Namespaces,
    /// How are the NVMe drives?
    Devices,
    /// End as on SIGTERM.
    Drain,
}

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another daemon answers there.
    #[error(
        "the admin socket {0} belongs to a daemon that runs: stop it, or write another \
         admin_socket in [daemon]"
    )]
    InUse(PathBuf),
    /// The file system says no.
    #[error(
        "cannot make the admin socket {path}: {source}; write another admin_socket in [daemon]"
    )]
    Bind {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

/// The socket and its clients. The file is removed when this is dropped.
pub struct Admin {
    listener: UnixListener,
    path: PathBuf,
    clients: Vec<Client>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Admin {
    /// Listens at `path`. A socket that a dead daemon has left there is replaced. Before other
    /// threads are started: it changes the process's umask for a moment.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn bind(path: &Path) -> Result<Self, AdminError> {
        if UnixStream::connect(path).is_ok() {
            return Err(AdminError::InUse(path.to_owned()));
        }
        let bound =
            replace(path).map_err(|source| AdminError::Bind { path: path.to_owned(), source });
        Ok(Self { listener: bound?, path: path.to_owned(), clients: Vec::new() })
    }

    /// Adds what has to be waited for.
    pub fn wait_fds<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().map(|client| client.stream.as_fd());
        fds.extend(clients.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
    }

    /// Reads what clients ask and answers with what `answer` says. Never waits for a request.
    pub fn serve(&mut self, mut answer: impl FnMut(Request) -> Value) {
        while let Ok((stream, _)) = self.listener.accept() {
            let tuned = stream.set_nonblocking(true);
            if tuned.is_ok() && self.clients.len() < CLIENTS_MAX {
                self.clients.push(Client { stream, line: Vec::new() });
            }
        }
        self.clients.retain_mut(|client| client.serve(&mut answer));
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("the admin socket was gone already: {error}");
        }
    }
}

fn replace(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()) => {
            std::fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::Error::other("a file of that name is there")),
        Err(_) => {}
    }
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(mask);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Client {
    /// `false`: this client is done.
    fn serve(&mut self, answer: &mut impl FnMut(Request) -> Value) -> bool {
        let mut chunk = [0; REQUEST_BYTES_MAX];
        let open = match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(bytes) => {
                self.line.extend_from_slice(&chunk[..bytes]);
                true
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let reply = match parse(&self.line[..end]) {
                Ok(request) => answer(request),
                Err(text) => json!({ "error": text }),
            };
            self.line.drain(..=end);
            if self.send(&reply).is_err() {
                return false;
            }
        }
        open && self.line.len() < REQUEST_BYTES_MAX
    }

    fn send(&mut self, reply: &Value) -> io::Result<()> {
        self.stream.set_nonblocking(false)?;
        self.stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        writeln!(self.stream, "{reply}")?;
        self.stream.set_nonblocking(true)
    }
}

fn parse(line: &[u8]) -> Result<Request, String> {
    let known = "send \"status\", \"namespaces\", \"devices\" or \"drain\", with the quotes, and a line end";
    match serde_json::from_slice::<String>(line).as_deref() {
        Ok("status") => Ok(Request::Status),
        Ok("namespaces") => Ok(Request::Namespaces),
        Ok("devices") => Ok(Request::Devices),
        Ok("drain") => Ok(Request::Drain),
        Ok(other) => Err(format!("unknown request {other:?}: {known}")),
        Err(_) => Err(format!("not a JSON string: {known}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;
    use std::os::unix::fs::PermissionsExt;

    fn ask(admin: &mut Admin, path: &Path, text: &[u8]) -> io::Result<String> {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(text).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // Once to read what was asked, once to see the end.
        for _ in 0..2 {
            admin.serve(|request| json!(format!("{request:?}")));
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).map(|_| answer)
    }

    #[test]
    fn each_line_is_answered_in_its_turn_and_a_bad_one_says_what_to_send() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("made/admin.sock");
        let mut admin = Admin::bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let answer = ask(&mut admin, &path, b"\"status\"\n\"drain\"\n").unwrap();
        assert_eq!(answer, "\"Status\"\n\"Drain\"\n");
        assert!(ask(&mut admin, &path, b"status\n").unwrap().contains("not a JSON string"));
        assert!(ask(&mut admin, &path, b"\"stats\"\n").unwrap().contains("unknown request"));
        assert!(admin.clients.is_empty());
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let mut admin = Admin::bind(&path).unwrap();
        let cut_off = ask(&mut admin, &path, &[b'x'; 2 * REQUEST_BYTES_MAX]).unwrap_err();
        assert_eq!(cut_off.kind(), io::ErrorKind::ConnectionReset);
        assert!(admin.clients.is_empty());
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        let admin = Admin::bind(&path).unwrap();
        assert!(matches!(Admin::bind(&path), Err(AdminError::InUse(_))));
        drop(admin);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Admin::bind(&path), Err(AdminError::Bind { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
