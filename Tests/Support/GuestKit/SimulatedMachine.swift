// SPDX-License-Identifier: Apache-2.0

public import DMA
internal import Logging
internal import TestKit
public import USB
public import XHCI

/// Counts interrupts.
public final class InterruptCounter: InterruptSink {
    private var counts: [Int] = []
    /// The vectors in the order in which they were signalled.
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

    /// Interrupts so far on a vector.
    public func count(vector: Int) -> Int { vector < counts.count ? counts[vector] : 0 }

    /// Interrupts so far on all vectors.
    public var total: Int { vectors.count }
}

/// A machine whose controller is an object of this process, on a virtual clock.
public final class SimulatedMachine: Machine {
    /// How the controller reaches the guest's memory.
    public enum MemoryKind: Sendable, CaseIterable {
        /// It is mapped.
        case local
        /// Each access is a message.
        case remote
    }

    public let memory: GuestRAM
    /// The memory as the controller sees it.
    public let bus: GuestMemory
    public let remote: RemoteRAM
    public let interrupts: InterruptCounter
    public let loop: SimulatedLoop
    public let controller: Controller
    /// How often ``Controller/service(now:)`` was called.
    public private(set) var serviceCount = 0
    /// Set when the controller kept asking for an instant that was not in the future.
    public private(set) var isSpinning = false
    /// The guest has written registers since the controller worked last.
    private var hasWritten = false
    /// Whether a worker thread has work in hand. Time stands still until it is done.
    ///
    /// Where this is `nil`, only a wait of a second or more waits for descriptors in real time.
    public var isWorkerBusy: (() -> Bool)?
    /// Called before each turn with its number, so that a test can do something at every moment.
    public var onTurn: ((Int) -> Void)?

    /// - Parameters:
    ///   - kind: how the controller reaches the guest's memory.
    ///   - capabilities: what the controller offers.
    ///   - memory: the guest's memory; a fresh one unless given.
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

    /// The virtual time.
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

    /// One turn of the event loop at the present time: the controller works, then what is due runs.
    ///
    /// - Returns: when the controller wants to be called again.
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
            // A message of the guest is a turn of the loop, too.
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
    /// - Returns: whether something ran because of it.
    private func waitForWorker() -> Bool {
        guard let isWorkerBusy else { return false }
        let deadline = ContinuousClock.now + .seconds(60)
        while isWorkerBusy(), ContinuousClock.now < deadline {
            if loop.turn(wait: 100) { return true }
        }
        return false
    }

    /// Plugs a device in.
    public func attach(_ device: any USBDevice) throws(AttachError) {
        try controller.attach(device)
    }

    /// Unplugs a device.
    public func detach(_ device: any USBDevice) { controller.detach(device) }
}
