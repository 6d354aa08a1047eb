//! Mailboxes: the only way one reactor reaches another, and the main thread reaches them all.
//!
//! Guarantees: mail from one sender to one receiver arrives once and in order; sending never blocks
//! (what does not fit a bounded queue waits at its sender until the next tick); a receiver that
//! sleeps is woken. A [`Mailbox::call`] ends in exactly one answer.
//!
//! What would break it: a call to oneself (the engine is at hand: it panics), a future of a call that
//! is dropped half-way, or a reactor that stops while others still call it: the main thread stops
//! them only once all of them have drained.

use crate::executor::{Ready, TaskId};
use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// Mail that one queue holds before its senders keep the rest back.
const QUEUE_MAIL: usize = 1024;

/// One thing that arrives in a mailbox: a question of another reactor, the answer to one of ours,
/// or a notice. `Q`, `A` and `N` are what the daemon asks, answers and announces.
#[derive(Debug)]
pub enum Mail<Q, A, N> {
    /// Another reactor asks; [`Mailbox::answer`] ends it.
    Question {
        /// Who asks.
        from: u16,
        /// Which of the asker's calls this is.
        call: u32,
        /// What it asks.
        question: Q,
    },
    /// The end of one of our calls; the mailbox keeps it to itself.
    Answer {
        /// Which of our calls.
        call: u32,
        /// How it ended.
        answer: A,
    },
    /// Something to know or to do, without an answer.
    Notice(N),
}

/// Wakes one reactor: rings only while it sleeps, so that mail between busy reactors costs no
/// system call.
#[derive(Debug)]
struct Bell {
    sleeps: AtomicBool,
    event: EventFd,
}

impl Bell {
    fn new() -> nix::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { sleeps: AtomicBool::new(false), event })
    }

    fn ring(&self) {
        // SeqCst pairs with `Mailbox::may_sleep`: either the sleeper sees the mail, or we see it sleep.
        if self.sleeps.load(Ordering::SeqCst) && self.event.write(1).is_err() {
            log::trace!("a wake-up was pending already");
        }
    }
}

/// Where mail for one reactor is dropped. Every thread may hold clones of it.
#[derive(Debug)]
pub struct Address<Q, A, N> {
    queue: Sender<Mail<Q, A, N>>,
    bell: Arc<Bell>,
}

impl<Q, A, N> Clone for Address<Q, A, N> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: self.bell.clone() }
    }
}

impl<Q, A, N> Address<Q, A, N> {
    /// Drops a notice off; waits while the queue is full, so not for reactors' threads. `false`: the
    /// reactor is gone.
    #[must_use]
    pub fn notify(&self, notice: N) -> bool {
        let sent = self.queue.send(Mail::Notice(notice)).is_ok();
        self.bell.ring();
        sent
    }

    fn drop_off(&self, mail: Mail<Q, A, N>) -> Result<(), TrySendError<Mail<Q, A, N>>> {
        self.queue.try_send(mail)?;
        self.bell.ring();
        Ok(())
    }
}

/// Mail that did not fit its queue and whose it is, in the order in which it has to go.
type Held<Q, A, N> = VecDeque<(u16, Mail<Q, A, N>)>;

/// A call of ours that has not been read by its future yet.
#[derive(Debug)]
struct Call<A> {
    waiter: Option<TaskId>,
    answer: Option<A>,
}

/// One reactor's mailbox; lives in that reactor's thread.
#[derive(Debug)]
pub struct Mailbox<Q, A, N> {
    me: u16,
    inbox: Receiver<Mail<Q, A, N>>,
    bell: Arc<Bell>,
    peers: Vec<Address<Q, A, N>>,
    held: RefCell<Held<Q, A, N>>,
    calls: RefCell<Vec<Option<Call<A>>>>,
    ready: Ready,
}

/// What makes one [`Mailbox`], and can be sent to the thread of its reactor.
#[derive(Debug)]
pub struct Seat<Q, A, N> {
    me: u16,
    inbox: Receiver<Mail<Q, A, N>>,
    bell: Arc<Bell>,
    peers: Vec<Address<Q, A, N>>,
}

/// Mailboxes for `reactors` reactors that all know one another, and their addresses.
///
/// # Errors
/// No descriptors left for the bells.
#[expect(clippy::type_complexity, reason = "a pair of plain vectors; an alias would hide it")]
pub fn mesh<Q, A, N>(reactors: u16) -> nix::Result<(Vec<Seat<Q, A, N>>, Vec<Address<Q, A, N>>)> {
    let mut inboxes = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..reactors {
        let (queue, inbox) = bounded(QUEUE_MAIL);
        let bell = Arc::new(Bell::new()?);
        inboxes.push((inbox, bell.clone()));
        addresses.push(Address { queue, bell });
    }
    let seats = inboxes.into_iter().zip(0..).map(|((inbox, bell), me)| {
        let peers = addresses.clone();
        Seat { me, inbox, bell, peers }
    });
    Ok((seats.collect(), addresses))
}

impl<Q, A, N> Seat<Q, A, N> {
    /// Takes the seat: from here on the mailbox belongs to the calling thread.
    #[must_use]
    pub fn take(self, ready: &Ready) -> Mailbox<Q, A, N> {
        let Self { me, inbox, bell, peers } = self;
        let (held, calls) = (RefCell::default(), RefCell::default());
        Mailbox { me, inbox, bell, peers, held, calls, ready: ready.clone() }
    }
}

impl<Q, A, N> Mailbox<Q, A, N> {
    /// This reactor's number.
    #[must_use]
    pub fn me(&self) -> u16 {
        self.me
    }

    /// How many reactors there are, this one included.
    #[must_use]
    pub fn reactors(&self) -> u16 {
        self.peers.len() as u16
    }

    /// Takes the next question or notice; answers go to their callers on the way.
    #[must_use]
    pub fn receive(&self) -> Option<Mail<Q, A, N>> {
        loop {
            match self.inbox.try_recv() {
                Ok(Mail::Answer { call, answer }) => self.settle(call, answer),
                Ok(mail) => return Some(mail),
                // The second cannot be: we hold an address of our own inbox.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return None,
            }
        }
    }

    /// Sends what had to be held back. Once per tick.
    pub fn retry(&self) {
        if self.held.borrow().is_empty() {
            return;
        }
        let held = std::mem::take(&mut *self.held.borrow_mut());
        held.into_iter().for_each(|(to, mail)| self.post(to, mail));
    }

    /// Asks reactor `to` and waits for its answer.
    ///
    /// # Panics
    /// A call to oneself.
    pub async fn call(self: &Rc<Self>, to: u16, question: Q) -> A {
        assert_ne!(to, self.me, "a reactor does not call itself: its engine is at hand");
        let call = self.open_call();
        self.post(to, Mail::Question { from: self.me, call, question });
        std::future::poll_fn(|_| match self.take_answer(call) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }

    /// Ends question `call` of reactor `to`.
    pub fn answer(&self, to: u16, call: u32, answer: A) {
        self.post(to, Mail::Answer { call, answer });
    }

    /// Tells every reactor but this one.
    pub fn broadcast(&self, notice: &N)
    where
        N: Clone,
    {
        for to in (0..self.reactors()).filter(|to| *to != self.me) {
            self.post(to, Mail::Notice(notice.clone()));
        }
    }

    /// Says that this reactor is about to sleep; `false` if there is mail, and it must not.
    /// [`Mailbox::woke`] ends the sleep.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        self.bell.sleeps.store(true, Ordering::SeqCst);
        let quiet = self.inbox.is_empty() && self.held.borrow().is_empty();
        if !quiet {
            self.woke();
        }
        quiet
    }

    /// The sleep is over.
    pub fn woke(&self) {
        self.bell.sleeps.store(false, Ordering::SeqCst);
        while self.bell.event.read().is_ok_and(|rings| rings > 0) {}
    }

    /// Turns readable when mail comes while this reactor sleeps.
    #[must_use]
    pub fn wait_fd(&self) -> BorrowedFd<'_> {
        self.bell.event.as_fd()
    }

    fn post(&self, to: u16, mail: Mail<Q, A, N>) {
        // Behind mail that is held for the same peer, so that order is kept.
        if self.held.borrow().iter().any(|(other, _)| *other == to) {
            self.held.borrow_mut().push_back((to, mail));
            return;
        }
        match self.peers[usize::from(to)].drop_off(mail) {
            Ok(()) => {}
            Err(TrySendError::Full(mail)) => self.held.borrow_mut().push_back((to, mail)),
            Err(TrySendError::Disconnected(_)) => log::debug!("reactor {to} has stopped already"),
        }
    }

    fn open_call(&self) -> u32 {
        let mut calls = self.calls.borrow_mut();
        let call = Some(Call { waiter: Some(self.ready.current()), answer: None });
        match calls.iter().position(Option::is_none) {
            Some(free) => {
                calls[free] = call;
                free as u32
            }
            None => {
                calls.push(call);
                calls.len() as u32 - 1
            }
        }
    }

    fn take_answer(&self, call: u32) -> Option<A> {
        let mut calls = self.calls.borrow_mut();
        let slot = &mut calls[call as usize];
        let answer = slot.as_mut().and_then(|call| call.answer.take());
        if answer.is_some() {
            *slot = None;
        }
        answer
    }

    fn settle(&self, call: u32, answer: A) {
        let mut calls = self.calls.borrow_mut();
        let open = calls.get_mut(call as usize).and_then(Option::as_mut);
        let Some(open) = open else {
            log::error!("an answer to call {call}, which nobody waits for");
            return;
        };
        open.answer = Some(answer);
        if let Some(task) = open.waiter.take() {
            self.ready.wake(task);
        }
    }
}

/// Lets a question's reply go out by a plain channel, for askers without a mailbox (the main thread).
#[derive(Clone, Debug)]
pub struct ReplyTo<T>(Sender<T>);

impl<T> ReplyTo<T> {
    /// A reply slot and where it is read.
    #[must_use]
    pub fn new(replies: usize) -> (Self, Receiver<T>) {
        let (sender, receiver) = bounded(replies.max(1));
        (Self(sender), receiver)
    }

    /// Replies; an asker that has given up does not mind.
    pub fn send(&self, reply: T) {
        if self.0.try_send(reply).is_err() {
            log::debug!("a reply came after its asker had left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Tasks;
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::Pin;

    type Box2 = Mailbox<(u32, u32), u32, &'static str>;
    type Task = Pin<Box<dyn Future<Output = ()>>>;

    fn two() -> (Rc<Box2>, Rc<Box2>, Ready) {
        let ready = Ready::new(8);
        let (seats, _) = mesh(2).unwrap();
        let mut boxes = seats.into_iter().map(|seat| Rc::new(seat.take(&ready)));
        (boxes.next().unwrap(), boxes.next().unwrap(), ready)
    }

    fn run(ready: &Ready, tasks: &mut Tasks<Task>) {
        while let Some(task) = ready.next() {
            tasks.run(task);
        }
    }

    fn ask(asker: &Rc<Box2>, tasks: &mut Tasks<Task>) -> Rc<Cell<Option<u32>>> {
        let (asker, got) = (asker.clone(), Rc::new(Cell::new(None)));
        let put = got.clone();
        assert!(tasks.spawn(Box::pin(async move { put.set(Some(asker.call(1, (2, 3)).await)) })));
        got
    }

    #[test]
    fn a_call_ends_in_the_answer_of_its_peer() {
        let (asker, peer, ready) = two();
        let mut tasks = Tasks::new(&ready, 0, 4);
        let got = ask(&asker, &mut tasks);
        run(&ready, &mut tasks);
        let Some(Mail::Question { from, call, question: (a, b) }) = peer.receive() else {
            panic!("the question did not arrive")
        };
        peer.answer(from, call, a + b);
        assert!(asker.receive().is_none());
        run(&ready, &mut tasks);
        assert_eq!(got.take(), Some(5));
        assert!(tasks.is_empty());
    }

    #[test]
    fn mail_that_does_not_fit_is_held_back_and_keeps_its_order() {
        let ready = Ready::new(8);
        let (seats, _) = mesh::<u8, u8, usize>(2).unwrap();
        let boxes: Vec<_> = seats.into_iter().map(|seat| seat.take(&ready)).collect();
        let count = QUEUE_MAIL + 10;
        (0..count).for_each(|n| boxes[0].broadcast(&n));
        assert!(!boxes[0].may_sleep(), "mail is held back");
        let mut seen = Vec::new();
        while seen.len() < count {
            while let Some(Mail::Notice(n)) = boxes[1].receive() {
                seen.push(n);
            }
            boxes[0].retry();
        }
        assert!(seen.into_iter().eq(0..count));
        assert!(boxes[0].may_sleep());
    }

    #[test]
    fn a_sleeping_reactor_is_woken_by_mail() {
        let ready = Ready::new(8);
        let (seats, addresses) = mesh::<u8, u8, u8>(1).unwrap();
        let mailbox = seats.into_iter().next().unwrap().take(&ready);
        assert!(addresses[0].notify(1));
        assert!(!mailbox.may_sleep(), "there is mail already");
        assert!(mailbox.receive().is_some());
        assert!(mailbox.may_sleep());
        assert!(addresses[0].notify(2));
        let mut fds = [nix::poll::PollFd::new(mailbox.wait_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 0u8).unwrap(), 1);
        mailbox.woke();
        assert_eq!(nix::poll::poll(&mut fds, 0u8).unwrap(), 0);
    }
}
