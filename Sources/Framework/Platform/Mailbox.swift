// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A queue of messages from other threads to the event loop, signalled by an eventfd; see
/// eventfd(2).
///
/// It is unbounded: its users bound the number of messages.
public final class Mailbox<Message: Sendable>: Sendable {
    private let messages = Locked<[Message]>([])
    private let event: OwnedDescriptor

    /// Creates an empty mailbox.
    ///
    /// - Throws: the errno of eventfd(2).
    public init() throws(Errno) {
        event = OwnedDescriptor(
            owning: try systemCall {
                eventfd(0, CInt(EFD_CLOEXEC | EFD_NONBLOCK))
            })
    }

    /// Appends a message and wakes the loop.
    ///
    /// Any thread may call it.
    public func post(_ message: Message) {
        messages.withLock { $0.append(message) }
        // EAGAIN means that the counter is full, which wakes the loop as well.
        _ = try? systemCall { eventfd_write(event.rawValue, 1) }
    }

    /// Calls `body` on the loop with each message, in the order they were posted, until the watch
    /// is dropped.
    ///
    /// The mailbox must outlive the watch. Messages that are posted before the call are delivered
    /// too.
    ///
    /// - Throws: `EEXIST` if the mailbox is watched already, otherwise the errno of epoll_ctl(2).
    public func deliver(
        on loop: any EventLoop, to body: @escaping (Message) -> Void
    ) throws(Errno) -> Watch {
        try loop.watch(event, for: .readable) { [unowned self] _ in
            for message in drain() { body(message) }
        }
    }

    private func drain() -> [Message] {
        var count: eventfd_t = 0
        unsafe _ = eventfd_read(event.rawValue, &count)
        return messages.withLock { queue in
            let all = queue
            queue = []
            return all
        }
    }
}
