// SPDX-License-Identifier: Apache-2.0

public import SystemPackage

/// Accepts the clients of a ``ListeningSocket`` on the event loop, until it is dropped.
///
/// When `accept(2)` fails, mostly because the process has no descriptors left, the connection stays
/// pending and the socket stays readable. The acceptor then does not watch the socket for
/// ``retryDelay``, so that the loop does not spin.
///
/// All closures run on the loop's thread, and so must all calls.
public final class Acceptor {
    /// The pause after a failure.
    public static let retryDelay: Duration = .seconds(1)

    private let listener: ListeningSocket
    private let loop: any EventLoop
    private let shouldAccept: () -> Bool
    private let onFailure: (Errno) -> Void
    private let onClient: (consuming OwnedDescriptor) throws(Errno) -> Void
    /// The watch of the socket, or the timer that ends a pause; `nil` while suspended.
    private var watch: Watch?

    /// Starts to accept clients.
    ///
    /// - Parameters:
    ///   - listener: the socket; the acceptor owns it from now on.
    ///   - loop: the event loop of the calling thread.
    ///   - shouldAccept: called when a client waits. If it returns `false` the client stays in the
    ///     kernel's queue, and the acceptor is suspended until ``resume()``.
    ///   - onFailure: called after each failure, before the pause.
    ///   - onClient: takes over the socket of a client, which is non-blocking. If it throws, this
    ///     client is disconnected and the acceptor pauses.
    /// - Throws: the errno of `epoll_ctl(2)`.
    public init(
        listener: ListeningSocket, loop: any EventLoop,
        shouldAccept: @escaping () -> Bool = { true },
        onFailure: @escaping (Errno) -> Void,
        onClient: @escaping (consuming OwnedDescriptor) throws(Errno) -> Void
    ) throws(Errno) {
        self.listener = listener
        self.loop = loop
        self.shouldAccept = shouldAccept
        self.onFailure = onFailure
        self.onClient = onClient
        try watchListener()
    }

    /// Accepts clients again at once, if the acceptor is suspended or pauses.
    public func resume() {
        do throws(Errno) { try watchListener() } catch { pause(after: error) }
    }

    private func watchListener() throws(Errno) {
        // epoll takes a descriptor only once: the old watch ends before the new one begins.
        watch = nil
        watch = try listener.watch(on: loop) { [unowned self] in acceptClient() }
    }

    private func acceptClient() {
        guard shouldAccept() else {
            watch = nil
            return
        }
        do throws(Errno) {
            guard let socket = try listener.accept() else { return }
            try onClient(socket)
        } catch {
            pause(after: error)
        }
    }

    private func pause(after error: Errno) {
        onFailure(error)
        watch = loop.schedule(at: loop.now + Self.retryDelay) { [unowned self] in resume() }
    }
}
