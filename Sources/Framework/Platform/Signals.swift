// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// Delivers signals to the event loop; see signalfd(2).
public final class SignalWatch {
    private let descriptor: OwnedDescriptor
    private var watch: Watch?

    /// Blocks signals and calls `body` on the loop when one of them arrives, until the watch is
    /// deallocated.
    ///
    /// The signals are blocked for the calling thread and for threads that it starts later, and
    /// stay blocked. Create the watch before any other thread.
    ///
    /// - Parameters:
    ///   - signals: signal numbers, such as `SIGTERM`; see signal(7).
    ///   - loop: the event loop of the calling thread.
    ///   - body: called with the signal number.
    /// - Throws: the errno of signalfd(2) or epoll_ctl(2).
    public init(
        _ signals: [CInt], on loop: any EventLoop, _ body: @escaping (CInt) -> Void
    ) throws(Errno) {
        var set = sigset_t()
        unsafe sigemptyset(&set)
        for signal in signals { unsafe sigaddset(&set, signal) }
        unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
        descriptor = OwnedDescriptor(
            owning: try systemCall {
                unsafe signalfd(-1, &set, CInt(SFD_CLOEXEC | SFD_NONBLOCK))
            })
        watch = try loop.watch(descriptor, for: .readable) { [unowned self] _ in
            while let signal = next() { body(signal) }
        }
    }

    private func next() -> CInt? {
        var info = signalfd_siginfo()
        let size = MemoryLayout<signalfd_siginfo>.size
        let count = unsafe read(descriptor.rawValue, &info, size)
        return count == size ? CInt(truncatingIfNeeded: info.ssi_signo) : nil
    }

    deinit { watch?.cancel() }
}

/// Ignores the signals that a failed write raises, for the whole process; see signal(7).
///
/// A write to a pipe or socket without a reader then fails with `EPIPE`, and one beyond the file
/// size limit (`ulimit -f`) with `EFBIG`.
public func ignoreWriteSignals() {
    _ = signal(SIGPIPE, SIG_IGN)
    _ = signal(SIGXFSZ, SIG_IGN)
}

extension SignalWatch {
    /// The signals that ask the process to end: `SIGTERM` of a service manager, `SIGINT` of a
    /// terminal.
    public static let termination: [CInt] = [SIGTERM, SIGINT]
}
