// SPDX-License-Identifier: Apache-2.0

internal import Platform

/// A few threads for calls that may block, shared by all devices.
///
/// Each device has a ``SerialQueue``; the pool runs the jobs of different queues at the same time,
/// on up to ``HostUSBLimits/threads`` threads. A system call that hangs occupies its thread. When
/// jobs wait and none has started for ``HostUSBLimits/stallTime``, the pool starts a further
/// thread, up to ``HostUSBLimits/threadsWhenStalled``. So a device that hangs delays other devices,
/// but does not block them.
///
/// All methods and completions run on the event loop.
final class ThreadPool {
    private let loop: any EventLoop
    private let schedule = JobSchedule()
    /// The threads; a thread with work runs ``JobSchedule/runJobs(onThread:)``.
    private var threads: [Worker] = []
    private let endedJobs: Mailbox<UInt64>
    private var delivery: Watch?
    private var completions: [UInt64: () -> Void] = [:]
    private var nextJob: UInt64 = 0
    private var nextQueue: UInt64 = 0
    /// The number of started jobs at the last check while jobs waited, and the time of that check.
    private var stall: (startedJobs: UInt64, since: Duration)?
    private var stallTimer: Watch?

    /// Starts the first thread.
    init(loop: any EventLoop) throws {
        self.loop = loop
        endedJobs = try Mailbox()
        delivery = try endedJobs.deliver(on: loop) { [unowned self] job in
            completions.removeValue(forKey: job)?()
        }
        threads.append(try Worker(name: "usb host", loop: loop))
        schedule.addThread()
    }

    deinit { delivery?.cancel() }

    var threadCount: Int { threads.count }

    /// Makes a queue whose jobs run one at a time.
    func makeQueue() -> SerialQueue {
        nextQueue += 1
        return SerialQueue(id: nextQueue, pool: self)
    }

    fileprivate func run<Result: Sendable>(
        on queue: UInt64, _ job: @escaping @Sendable () -> Result,
        completion: @escaping (Result) -> Void
    ) {
        nextJob += 1
        let id = nextJob
        let result = Locked<Result?>(nil)
        completions[id] = {
            if let result = result.withLock({ $0.take() }) { completion(result) }
        }
        let endedJobs = endedJobs
        let holder = Locked<(@Sendable () -> Result)?>(job)
        schedule.append(to: queue) {
            let value = Self.runOnce(holder)
            result.withLock { $0 = value }
            endedJobs.post(id)
        }
        if wakeIdleThread() || schedule.progress.waiting == 0 { return }
        if threads.count < HostUSBLimits.threads && addThread() { return }
        checkForStall()
    }

    /// Runs a job and releases its captures before its completion runs.
    private static func runOnce<Result: Sendable>(
        _ holder: Locked<(@Sendable () -> Result)?>
    ) -> Result? {
        let job = holder.withLock { $0.take() }
        return job?()
    }

    /// Makes an idle thread run jobs that wait.
    ///
    /// - Returns: `false` if no thread is idle or no job waits.
    private func wakeIdleThread() -> Bool {
        guard let thread = schedule.claimIdleThread() else { return false }
        let schedule = schedule
        threads[thread].run {
            schedule.runJobs(onThread: thread)
        } completion: {
        }
        return true
    }

    /// Starts a thread for the jobs that wait.
    ///
    /// - Returns: `false` if the system has no more threads; the jobs then wait for the existing
    ///   ones.
    private func addThread() -> Bool {
        guard let worker = try? Worker(name: "usb host", loop: loop) else { return false }
        threads.append(worker)
        schedule.addThread()
        _ = wakeIdleThread()
        return true
    }

    /// Starts a further thread if jobs wait and none has started for ``HostUSBLimits/stallTime``.
    ///
    /// A timer calls this while jobs wait. Code that blocks the loop until a job has ended must
    /// call it itself.
    func checkForStall() {
        let (waiting, started) = schedule.progress
        guard waiting > 0 else {
            stall = nil
            stallTimer = nil
            return
        }
        if let stall, stall.startedJobs == started {
            if loop.now - stall.since < HostUSBLimits.stallTime { return }
            if threads.count < HostUSBLimits.threadsWhenStalled { _ = addThread() }
        }
        stall = (started, loop.now)
        stallTimer = loop.schedule(at: loop.now + HostUSBLimits.stallTime) { [weak self] in
            self?.checkForStall()
        }
    }
}

/// A device's blocking calls, which run one at a time, in order, on the threads of a
/// ``ThreadPool``.
final class SerialQueue {
    private let id: UInt64
    private let pool: ThreadPool

    /// Jobs whose completion has not been called.
    private(set) var pendingJobs = 0

    fileprivate init(id: UInt64, pool: ThreadPool) {
        self.id = id
        self.pool = pool
    }

    /// Runs `job` on a thread after all earlier jobs of this queue, then `completion` on the loop.
    func run<Result: Sendable>(
        _ job: @escaping @Sendable () -> Result, completion: @escaping (Result) -> Void
    ) {
        pendingJobs += 1
        pool.run(on: id, job) { [self] result in
            pendingJobs -= 1
            completion(result)
        }
    }

    /// See ``ThreadPool/checkForStall()``.
    func checkForStall() { pool.checkForStall() }
}

/// The jobs of a pool's queues and the state of its threads; shared by all threads.
private final class JobSchedule: Sendable {
    private struct State {
        /// The waiting jobs of each queue that has a job waiting or running.
        var queues: [UInt64: [@Sendable () -> Void]] = [:]
        /// Queues that have a waiting job and no running one, in the order of service.
        var runnable: [UInt64] = []
        var isBusy: [Bool] = []
        /// Busy threads that have not taken their first job yet.
        var wakingThreads = 0
        var startedJobs: UInt64 = 0

        /// Runnable queues that no waking thread will take.
        var waitingQueues: Int { runnable.count - wakingThreads }
    }

    private let state = Locked(State())

    /// The number of queues that wait for a thread, and of jobs started since the beginning.
    var progress: (waiting: Int, started: UInt64) {
        state.withLock { ($0.waitingQueues, $0.startedJobs) }
    }

    func addThread() { state.withLock { $0.isBusy.append(false) } }

    func append(to queue: UInt64, _ job: @escaping @Sendable () -> Void) {
        state.withLock { state in
            if state.queues[queue] == nil { state.runnable.append(queue) }
            state.queues[queue, default: []].append(job)
        }
    }

    /// Marks an idle thread as busy, if a queue waits. The caller makes the thread run jobs.
    ///
    /// - Returns: the thread's index; `nil` if no thread is idle or no queue waits.
    func claimIdleThread() -> Int? {
        state.withLock { state in
            guard state.waitingQueues > 0, let thread = state.isBusy.firstIndex(of: false) else {
                return nil
            }
            state.isBusy[thread] = true
            state.wakingThreads += 1
            return thread
        }
    }

    /// Runs jobs until no queue is runnable.
    func runJobs(onThread thread: Int) {
        state.withLock { $0.wakingThreads -= 1 }
        while let (queue, job) = nextJob(thread) {
            job()
            jobEnded(queue)
        }
    }

    /// Removes and returns the first job of the next runnable queue. Without one, marks the thread
    /// as idle and returns `nil`.
    private func nextJob(_ thread: Int) -> (queue: UInt64, job: @Sendable () -> Void)? {
        state.withLock { state in
            guard let queue = state.runnable.first, let job = state.queues[queue]?.first else {
                state.isBusy[thread] = false
                return nil
            }
            state.runnable.removeFirst()
            state.queues[queue]?.removeFirst()
            state.startedJobs += 1
            return (queue, job)
        }
    }

    private func jobEnded(_ queue: UInt64) {
        state.withLock { state in
            if state.queues[queue]?.isEmpty == false {
                state.runnable.append(queue)
            } else {
                state.queues[queue] = nil
            }
        }
    }
}
