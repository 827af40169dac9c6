// SPDX-License-Identifier: Apache-2.0

public import DMA
internal import Logging
internal import TestKit
public import USB
public import XHCI

/// An interrupt sink that counts.
public final class InterruptCounter: InterruptSink {
    private var counts: [Int] = []
    /// The signalled vectors, in order.
    public private(set) var vectors: [Int] = []
    /// Called for each interrupt.
    public var onSignal: ((Int) -> Void)?

    public init() {}

    public func signal(vector: Int) {
        precondition(vector >= 0, "vectors are not negative: \(vector)")
        while counts.count <= vector { counts.append(0) }
        counts[vector] += 1
        vectors.append(vector)
        onSignal?(vector)
    }

    /// The number of interrupts on a vector.
    public func count(vector: Int) -> Int { vector < counts.count ? counts[vector] : 0 }

    /// The number of interrupts on all vectors.
    public var total: Int { vectors.count }
}

/// A machine with a controller in the same process and simulated time.
public final class SimulatedMachine: Machine {
    /// The controller's access to guest memory.
    public enum MemoryKind: Sendable, CaseIterable {
        /// Memory is mapped.
        case local
        /// Each access is a message.
        case remote
    }

    public let memory: GuestRAM
    /// The guest memory that the controller accesses.
    public let bus: GuestMemory
    public let remote: RemoteRAM
    public let interrupts: InterruptCounter
    public let loop: SimulatedLoop
    public let controller: Controller
    /// The number of calls of ``Controller/service(now:)``.
    public private(set) var serviceCount = 0
    /// Whether the controller repeatedly asked to be serviced at a time that was not in the future.
    public private(set) var isSpinning = false
    /// Whether the guest has written registers since the last service pass.
    private var hasWritten = false
    /// Whether a worker thread has jobs. The simulated time does not pass until they are done.
    ///
    /// If `nil`, only a wait of a second or more waits for descriptors in real time.
    public var isWorkerBusy: (() -> Bool)?
    /// Called before each service pass with its number.
    public var onTurn: ((Int) -> Void)?

    /// - Parameters:
    ///   - kind: how the controller accesses guest memory.
    ///   - capabilities: the controller's capabilities.
    ///   - memory: the guest's memory; new memory if `nil`.
    public init(
        _ kind: MemoryKind = .local, capabilities: Capabilities = .init(),
        memory given: GuestRAM? = nil
    ) throws {
        let memory: GuestRAM
        if let given { memory = given } else { memory = try GuestRAM() }
        self.memory = memory
        bus = GuestMemory()
        remote = RemoteRAM(memory)
        interrupts = InterruptCounter()
        loop = SimulatedLoop()
        switch kind {
        case .local:
            try bus.map(
                memory.descriptor(), offset: 0, count: UInt64(memory.size), at: memory.base,
                writable: true)
        case .remote:
            bus.remote = remote
            try bus.mapRemote(count: UInt64(memory.size), at: memory.base, writable: true)
        }
        controller = Controller(
            memory: bus, interrupts: interrupts, capabilities: capabilities,
            logger: .silent)
    }

    /// The simulated time.
    public var now: Duration { loop.now }

    public func readRegister(at offset: Int, count: Int) -> [UInt8] {
        let now = loop.now
        return [UInt8](capacity: count) { bytes in
            controller.read(at: offset, into: &bytes, now: now)
            while bytes.freeCapacity > 0 { bytes.append(0) }
        }
    }

    public func writeRegister(at offset: Int, _ bytes: [UInt8]) {
        hasWritten = true
        controller.write(at: offset, from: bytes.span, now: loop.now)
    }

    public func interruptCount(vector: Int) -> Int { interrupts.count(vector: vector) }

    /// One service pass of the controller, then one turn of the event loop, without letting time
    /// pass.
    ///
    /// - Returns: the time of the controller's next service; `nil` if it needs none.
    @discardableResult
    public func turn() -> Duration? {
        let wanted = service()
        return loop.turn() ? loop.now : wanted
    }

    private func service() -> Duration? {
        serviceCount += 1
        hasWritten = false
        onTurn?(serviceCount)
        return controller.service(now: loop.now)
    }

    public func advance(limit: Duration, until condition: () -> Bool) -> Bool {
        let end = loop.now + limit
        var turnsAtOneTime = 0
        while true {
            let wanted = service()
            if condition() { return true }
            // A register write is a message, which would wake the loop.
            let hasMore = hasWritten
            if loop.turn() || hasMore || waitForWorker() {
                turnsAtOneTime = 0
                continue
            }
            guard let next = [wanted, loop.nextDeadline].compactMap({ $0 }).min(), next <= end
            else {
                if isWorkerBusy == nil, limit >= .seconds(1), loop.watchesDescriptors,
                    loop.turn(wait: 5000)
                {
                    continue
                }
                loop.advance(to: end)
                _ = service()
                return condition()
            }
            turnsAtOneTime = next > loop.now ? 0 : turnsAtOneTime + 1
            if turnsAtOneTime > 1000 {
                isSpinning = true
                return condition()
            }
            loop.advance(to: next)
        }
    }

    /// Waits in real time for a busy worker.
    ///
    /// - Returns: whether the loop has run a handler.
    private func waitForWorker() -> Bool {
        guard let isWorkerBusy else { return false }
        let deadline = ContinuousClock.now + .seconds(60)
        while isWorkerBusy(), ContinuousClock.now < deadline {
            if loop.turn(wait: 100) { return true }
        }
        return false
    }

    /// Attaches a device.
    public func attach(_ device: any USBDevice) throws(AttachError) {
        try controller.attach(device)
    }

    /// Detaches a device.
    public func detach(_ device: any USBDevice) { controller.detach(device) }
}
