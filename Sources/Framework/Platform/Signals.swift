// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// Signals as events of the loop. Corresponds to `signalfd(2)`.
public final class SignalWatch {
    private let descriptor: OwnedDescriptor
    private var watch: Watch?

    /// Calls `body` on the loop with each of the signals that arrives.
    ///
    /// They are blocked for the calling thread and the threads it starts from now on, and stay so.
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

/// Turns writes to a pipe or socket without a reader, and beyond the size that files may have
/// (`ulimit -f`), into errors, for the whole program.
public func ignoreWriteSignals() {
    _ = signal(SIGPIPE, SIG_IGN)
    _ = signal(SIGXFSZ, SIG_IGN)
}

extension SignalWatch {
    /// The signals that ask a program to end: of a service manager and of the terminal.
    public static let termination: [CInt] = [SIGTERM, SIGINT]
}
