// SPDX-License-Identifier: Apache-2.0

internal import CLinux
internal import Glibc
public import SystemPackage

/// A thread for calls that may block.
///
/// It runs jobs one after the other, in the order of submission, and delivers their results to the
/// event loop.
///
/// A backend owns the workers it needs. The functions are called on the loop's thread. When the
/// worker is deallocated its thread finishes the submitted jobs and ends; their completions are not
/// called.
public final class Worker {
    private let queue: JobQueue
    private let results: Mailbox<(UInt64, any Sendable)>
    private var delivery: Watch?
    private var completions: [UInt64: (any Sendable) -> Void] = [:]
    private var nextJob: UInt64 = 0

    /// Starts the thread.
    ///
    /// All signals are blocked in it except SIGBUS, which ``Mapping`` handles.
    ///
    /// - Parameters:
    ///   - name: the thread's name, of which the kernel shows 15 bytes (pthread_setname_np(3)).
    ///   - loop: the event loop that calls the completions.
    /// - Throws: the errno of eventfd(2) or epoll_ctl(2), `EAGAIN` if no thread can be created
    ///   (pthread_create(3)).
    public init(name: String, loop: any EventLoop) throws(Errno) {
        queue = JobQueue()
        results = try Mailbox()
        delivery = try results.deliver(on: loop) { [unowned self] job, result in
            completions.removeValue(forKey: job)?(result)
        }
        try queue.startThread(name: name)
    }

    /// The number of submitted jobs whose completion has not been called.
    public var pendingJobs: Int { completions.count }

    /// Runs a job on the thread, after all jobs submitted before.
    ///
    /// - Parameters:
    ///   - job: runs on the thread. Values it captures are released before `completion` is called.
    ///   - completion: called on the loop with the job's result, never from within this function.
    public func run<Result: Sendable>(
        _ job: @escaping @Sendable () -> Result, completion: @escaping (Result) -> Void
    ) {
        let id = nextJob
        nextJob += 1
        completions[id] = { result in
            guard let result = result as? Result else {
                preconditionFailure("job \(id) returned \(type(of: result))")
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

    /// Blocks the calling thread until all submitted jobs have run.
    ///
    /// Their completions are called by the loop later.
    public func waitUntilIdle() {
        let done = Semaphore()
        queue.append { done.signal() }
        done.wait()
    }

    deinit {
        // Ends the watch of the mailbox's eventfd before the mailbox closes it.
        delivery?.cancel()
        queue.close()
    }
}

/// The queue of a worker's jobs, shared by the thread and its owner.
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
        // The loop's thread receives signals. SIGBUS stays unblocked because an access to a
        // truncated file raises it in the thread itself.
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

/// The argument of the thread's start function.
private final class ThreadStart: Sendable {
    let queue: JobQueue
    let name: String

    init(queue: JobQueue, name: String) {
        self.queue = queue
        self.name = name
    }
}

/// A counting semaphore; see sem_overview(7).
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
