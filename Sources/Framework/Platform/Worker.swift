// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// One thread for calls that may block; jobs run in order and their results return to the loop.
///
/// A backend owns the worker it needs. The worker's jobs see only what they capture as `Sendable`;
/// completions run on the loop.
public final class Worker {
    private let queue: JobQueue
    private let results: Mailbox<(UInt64, any Sendable)>
    private var delivery: Watch?
    private var completions: [UInt64: (any Sendable) -> Void] = [:]
    private var nextJob: UInt64 = 0

    /// Starts a thread called `name` (15 bytes are shown) whose results come back on `loop`.
    public init(name: String, loop: any EventLoop) throws(Errno) {
        queue = JobQueue()
        results = try Mailbox()
        delivery = try results.deliver(on: loop) { [unowned self] job, result in
            completions.removeValue(forKey: job)?(result)
        }
        try queue.startThread(name: name)
    }

    /// Jobs that were given and whose completion has not run.
    public var pendingJobs: Int { completions.count }

    /// Runs `job` on the thread after all earlier ones, then `completion` on the loop. What the job
    /// holds is given back before its completion runs.
    public func run<Result: Sendable>(
        _ job: @escaping @Sendable () -> Result, completion: @escaping (Result) -> Void
    ) {
        let id = nextJob
        nextJob += 1
        completions[id] = { result in
            guard let result = result as? Result else {
                preconditionFailure("job \(id) answered with \(type(of: result))")
            }
            completion(result)
        }
        let results = results
        let holder = Locked<(@Sendable () -> Result)?>(job)
        queue.append {
            guard let result = Self.runOnce(holder) else { return }
            results.post((id, result))
        }
    }

    private static func runOnce<Result: Sendable>(
        _ holder: Locked<(@Sendable () -> Result)?>
    ) -> Result? {
        let job = holder.withLock { $0.take() }
        return job?()
    }

    /// Waits until the thread has done all jobs given so far; their completions run later.
    public func waitUntilIdle() {
        let done = Semaphore()
        queue.append { done.signal() }
        done.wait()
    }

    /// The thread finishes what was queued and ends by itself; completions no longer run.
    deinit {
        // Before the eventfd that it watches can be closed.
        delivery?.cancel()
        queue.close()
    }
}

/// What the thread and its owner share.
private final class JobQueue: Sendable {
    private struct State {
        var jobs: [@Sendable () -> Void] = []
        var isClosed = false
    }

    private let state = Locked(State())
    private let available = Semaphore()

    func append(_ job: @escaping @Sendable () -> Void) {
        state.withLock { $0.jobs.append(job) }
        available.signal()
    }

    func close() {
        state.withLock { $0.isClosed = true }
        available.signal()
    }

    func startThread(name: String) throws(Errno) {
        var thread = pthread_t()
        let box = unsafe Unmanaged.passRetained(ThreadStart(queue: self, name: name))
        // Signals belong to the loop: the thread starts with all of them blocked, except the one
        // that an access to lost memory raises in the thread itself and that is handled.
        var all = sigset_t()
        var previous = sigset_t()
        unsafe sigfillset(&all)
        unsafe sigdelset(&all, SIGBUS)
        unsafe pthread_sigmask(SIG_SETMASK, &all, &previous)
        let error = unsafe pthread_create(
            &thread, nil,
            { argument in
                guard let argument = unsafe argument else { return nil }
                let start = unsafe Unmanaged<ThreadStart>.fromOpaque(argument).takeRetainedValue()
                unsafe clinux_name_thread(String(start.name.prefix(15)))
                start.queue.runJobs()
                return nil
            }, box.toOpaque())
        unsafe pthread_sigmask(SIG_SETMASK, &previous, nil)
        guard error == 0 else {
            unsafe box.release()
            throw Errno(rawValue: error)
        }
        pthread_detach(thread)
    }

    func runJobs() {
        while true {
            available.wait()
            let (jobs, isClosed) = state.withLock { state in
                let jobs = state.jobs
                state.jobs = []
                return (jobs, state.isClosed)
            }
            for job in jobs { job() }
            if isClosed && jobs.isEmpty { return }
            if isClosed { available.signal() }
        }
    }
}

private final class ThreadStart: Sendable {
    let queue: JobQueue
    let name: String

    init(queue: JobQueue, name: String) {
        self.queue = queue
        self.name = name
    }
}

/// A POSIX semaphore; jobs are rare, so this is the simplest thing that sleeps.
@safe
private final class Semaphore: @unchecked Sendable {
    private let storage: UnsafeMutablePointer<sem_t>

    init() {
        unsafe storage = .allocate(capacity: 1)
        unsafe sem_init(storage, 0, 0)
    }

    deinit {
        unsafe sem_destroy(storage)
        unsafe storage.deallocate()
    }

    func signal() { unsafe _ = sem_post(storage) }

    func wait() {
        while unsafe sem_wait(storage) != 0 && errno == EINTR {}
    }
}
