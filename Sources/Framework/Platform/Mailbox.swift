// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// The one way from another thread to the event loop: a queue and an eventfd.
public final class Mailbox<Message: Sendable>: Sendable {
    private let messages = Locked<[Message]>([])
    private let event: OwnedDescriptor

    /// Creates an empty mailbox.
    public init() throws(Errno) {
        event = OwnedDescriptor(
            owning: try systemCall {
                eventfd(0, CInt(EFD_CLOEXEC | EFD_NONBLOCK))
            })
    }

    /// Leaves a message; any thread may call this.
    public func post(_ message: Message) {
        messages.withLock { $0.append(message) }
        // EAGAIN means that the counter is full, which wakes the loop just as well.
        _ = try? systemCall { eventfd_write(event.rawValue, 1) }
    }

    /// Calls `body` on the loop for each message, in the order in which they were posted.
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
