// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// The properties of a slot that its endpoints use.
struct SlotIdentity {
    let slot: Int
    let connection: PortConnection?
    /// The slot's Interrupter Target, for events that belong to no TRB.
    let interrupter: Int
}

/// An endpoint with its transfer ring, or with one for each of its streams (xHCI 4.8, 4.9.2, 4.12).
///
/// TDs are read ahead within the credits and complete in order. An error or a stop requeues
/// the TDs that have not completed: they are read from the ring again when the endpoint runs again.
///
/// Beside this file: Endpoint+Submission (from a ring to the device), Endpoint+Retirement (from the
/// device to events), Endpoint+Commands, Endpoint+Control (control requests with a split Data
/// Stage) and Endpoint+Isochronous.
struct Endpoint {
    /// The Device Context Index.
    let index: Int
    let kind: EndpointKind
    let address: EndpointAddress
    private(set) var state = EndpointState.running
    /// The transfer ring of the endpoint, or those of its streams in the order of their first use.
    var queues: [TransferQueue] = []
    /// TDs, bytes and TRBs in flight in all queues.
    var load = PipelineLoad()
    /// Leases that have ended, for the next transfers.
    var leases: [MemoryLease] = []
    /// `nil` for an endpoint without streams.
    var streams: StreamTable?
    /// Whether Stop Endpoint or a halt waits for the device to complete cancelled transfers.
    var isStopping = false
    /// The control request in progress whose Data Stage is queued in several TDs.
    var request: ControlDataStage?
    /// The service intervals of an isochronous endpoint.
    var schedule: IsochronousSchedule?
    /// The output Endpoint Context, and its first doubleword.
    private let contextAddress: UInt64
    private var contextInfo: UInt32

    /// Creates an endpoint in the Running state, as Address Device and Configure Endpoint do.
    init(index: Int, context: EndpointContext, contextAddress: UInt64) {
        self.index = index
        kind = context.kind
        address = EndpointAddress(
            UInt8(index / 2), context.kind != .control && index % 2 == 1 ? .in : .out)
        streams = StreamTable(context)
        if streams == nil {
            queues.append(TransferQueue(RingPosition(rawValue: context.dequeuePointer)))
        }
        schedule = context.kind.isIsochronous ? IsochronousSchedule(context) : nil
        self.contextAddress = contextAddress
        contextInfo = context.info
    }

    // MARK: - Service

    /// The result of one service of an endpoint.
    enum ServiceResult {
        /// The endpoint has no work until a doorbell, a completion or its wake time.
        case idle
        /// The budget is spent before the work is done.
        case more
        /// Events wait for an event ring that is full.
        case waitingForEventRing
    }

    /// Handles a doorbell: a stopped endpoint runs again. The Stream ID must be 0 for an endpoint
    /// without streams (xHCI 5.6).
    ///
    /// - Returns: whether the endpoint has work.
    mutating func ringDoorbell(
        stream: Int, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) -> Bool {
        if streams == nil, stream != 0 { return false }
        if state == .stopped { setState(.running, bus) }
        guard streams != nil, state == .running else { return true }
        do throws(StreamError) {
            let queue = try queueIndex(ofStream: stream, bus)
            streams?.markRunnable(queue)
            return true
        } catch {
            halt(for: error, owner, &bus)
            return false
        }
    }

    /// Halts the endpoint after a doorbell for a stream that does not exist (xHCI 4.8.3). The event
    /// has no TRB to point to.
    private mutating func halt(
        for error: StreamError, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        let code: CompletionCode =
            switch error {
            case .invalidID: .invalidStreamIDError
            case .invalidType: .invalidStreamTypeError
            }
        retireCompletedStreams(except: nil, owner, &bus)
        requeueAll(owner)
        setState(.halted, bus)
        bus.post(
            .transferEvent(code, slot: owner.slot, endpoint: index, pointer: 0, length: 0),
            to: owner.interrupter)
    }

    /// Posts the events of TDs that have completed and submits the next ones.
    ///
    /// - Parameters:
    ///   - budget: the work that may be done in this service pass; reduced by the work done.
    ///   - microframe: the time for isochronous TDs.
    mutating func service(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, microframe: Int64
    ) -> ServiceResult {
        guard streams != nil else {
            return serviceQueue(
                0, owner, &bus, &sequence, budget: &budget, microframe: microframe)
        }
        while budget > 0, let queue = streams?.popRunnable() {
            switch serviceQueue(
                queue, owner, &bus, &sequence, budget: &budget, microframe: microframe)
            {
            case .idle:
                if !hasCredits(queue) { streams?.markWaitingForCredits(queue) }
            case .more:
                streams?.markRunnable(queue)
                return .more
            case .waitingForEventRing:
                streams?.markRunnable(queue)
                return .waitingForEventRing
            }
        }
        return streams?.hasRunnable ?? false ? .more : .idle
    }

    private mutating func serviceQueue(
        _ queue: Int, _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, microframe: Int64
    ) -> ServiceResult {
        let end = budget - XHCILimits.workPerEndpoint
        while budget > max(0, end) {
            guard retireCompleted(queue, owner, &bus) else { return .waitingForEventRing }
            let bytes = load.bytes
            let hasMore =
                schedule == nil
                ? submitNext(queue, owner, bus, &sequence, budget: &budget)
                : advanceSchedule(owner, &bus, &sequence, budget: &budget, now: microframe)
            guard hasMore else { return .idle }
            budget -= (load.bytes - bytes) >> 12
        }
        return .more
    }

    // MARK: - Streams

    /// The index of a stream's queue; the Stream Context is read at the first use.
    mutating func queueIndex(
        ofStream id: Int, _ bus: SystemBus
    ) throws(StreamError) -> Int {
        guard let index = try streams?.index(of: id, bus) else { throw .invalidID }
        if index == queues.count, let ring = streams?.dequeuePointer(at: index) {
            queues.append(TransferQueue(ring))
        }
        return index
    }

    // MARK: - State

    /// Enters a state and stores it, with the dequeue pointers, in the output contexts.
    mutating func setState(_ new: EndpointState, _ bus: SystemBus) {
        state = new
        contextInfo[bits: 0...2] = UInt32(new.rawValue)
        if streams == nil {
            bus.store(
                queues[0].dequeuePointer.rawValue,
                at: contextAddress &+ EndpointContext.dequeuePointerOffset)
        } else if new != .running {
            for queue in queues.indices { storeStreamContext(queue, bus) }
        }
        bus.store(contextInfo, at: contextAddress &+ EndpointContext.stateOffset)
    }

    /// Stores the dequeue pointer of a stream in its Stream Context.
    func storeStreamContext(_ queue: Int, _ bus: SystemBus) {
        streams?.store(queues[queue], at: queue, bus)
    }

    /// Enters the Disabled state; the output contexts are not written any more.
    mutating func setDisabled() { state = .disabled }
}
