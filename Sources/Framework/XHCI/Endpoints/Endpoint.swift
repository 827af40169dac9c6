// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule
internal import USB

/// What an endpoint knows of the slot it belongs to.
struct SlotIdentity {
    let slot: Int
    let connection: PortConnection?
    /// The slot's Interrupter Target, for events that belong to no TRB.
    let interrupter: Int
}

/// An endpoint with its transfer ring, or with one for each of its streams (xHCI 4.8, 4.9.2, 4.12).
///
/// TRBs are read ahead as far as the pipeline allows; their transfers end in order. Whatever ends
/// this early, an error or a stop, gives the TRBs that were read but not carried out back to the
/// ring: they are read again when the endpoint goes on. The commands are in Endpoint+Commands.
struct Endpoint {
    /// The Device Context Index.
    let index: Int
    let kind: EndpointKind
    let address: EndpointAddress
    private(set) var state = EndpointState.running
    /// The transfer ring, or that of the selected stream.
    var queue: TransferQueue
    /// What all queues have in flight.
    private var load = PipelineLoad()
    /// `nil` for an endpoint without streams.
    var streams: StreamTable?
    /// Stop Endpoint waits for the device to give back what is in flight.
    var isStopping = false
    /// What goes on where the Data Stage comes in pieces; control endpoints only.
    var request: ControlDataStage?
    /// When transfers are due; isochronous endpoints only.
    var schedule: IsochronousSchedule?
    /// The endpoint's part of the output Device Context, and its first doubleword.
    private let contextAddress: UInt64
    private var contextInfo: UInt32

    /// An endpoint that runs, as Address Device and Configure Endpoint make it.
    init(index: Int, context: EndpointContext, contextAddress: UInt64) {
        self.index = index
        kind = context.kind
        address = EndpointAddress(
            UInt8(index / 2), context.kind != .control && index % 2 == 1 ? .in : .out)
        queue = TransferQueue(RingPosition(rawValue: context.dequeuePointer))
        streams = StreamTable(context)
        schedule = context.kind.isIsochronous ? IsochronousSchedule(context) : nil
        self.contextAddress = contextAddress
        contextInfo = context.info
    }

    // MARK: - Running

    /// How a visit to an endpoint ended.
    enum Visit {
        /// There is nothing to do until something happens.
        case idle
        /// There is more, but others shall have their turn.
        case more
        /// Events must find room first.
        case blocked
    }

    /// The doorbell: a stopped endpoint runs again. The Stream ID must be 0 where there are no streams
    /// (xHCI 5.6).
    ///
    /// - Returns: whether the endpoint is to be visited.
    mutating func ringDoorbell(
        stream: Int, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) -> Bool {
        if streams == nil, stream != 0 { return false }
        if state == .stopped { setState(.running, bus) }
        guard streams != nil, state == .running else { return true }
        do throws(StreamTable.Mistake) {
            if let place = try streams?.place(of: stream, bus) { streams?.markReady(place) }
            return true
        } catch {
            refuse(error, owner, &bus)
            return false
        }
    }

    /// A doorbell for no stream halts the endpoint (xHCI 4.8.3). The event has no TRB to point to.
    private mutating func refuse(
        _ mistake: StreamTable.Mistake, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        let code: CompletionCode =
            switch mistake {
            case .invalidID: .invalidStreamIDError
            case .invalidType: .invalidStreamTypeError
            }
        finishOtherStreams(owner, &bus)
        giveBack(owner)
        setState(.halted, bus)
        bus.post(
            .transferEvent(code, slot: owner.slot, endpoint: index, pointer: 0, length: 0),
            to: owner.interrupter)
    }

    /// Posts the events of what is finished and starts what the ring has.
    ///
    /// - Parameters:
    ///   - budget: the work that may be done (``XHCILimits/workPerEndpoint``); what is done is taken off.
    ///   - microframe: the time for isochronous transfers.
    mutating func visit(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, microframe: Int64
    ) -> Visit {
        guard streams != nil else {
            return visitQueue(owner, &bus, &sequence, budget: &budget, microframe: microframe)
        }
        defer { select(nil) }
        while budget > 0, let place = streams?.popReady() {
            select(place)
            switch visitQueue(owner, &bus, &sequence, budget: &budget, microframe: microframe) {
            case .idle:
                if !hasRoom { streams?.markStarved(place) }
            case .more:
                streams?.markReady(place)
                return .more
            case .blocked:
                streams?.markReady(place)
                return .blocked
            }
        }
        return streams?.hasReady ?? false ? .more : .idle
    }

    private mutating func visitQueue(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, microframe: Int64
    ) -> Visit {
        let end = budget - XHCILimits.workPerEndpoint
        while budget > max(0, end) {
            guard settle(owner, &bus) else { return .blocked }
            let bytes = load.bytes
            let hasMore =
                schedule == nil
                ? startNext(owner, bus, &sequence, budget: &budget)
                : advanceSchedule(owner, &bus, &sequence, budget: &budget, now: microframe)
            guard hasMore else { return .idle }
            budget -= (load.bytes - bytes) >> 12
        }
        return .more
    }

    /// Notes how a transfer ended; `false` if it is none of this endpoint's.
    mutating func record(_ completion: Transfer.Completion) -> Bool {
        if streams != nil {
            let stream = completion.id.stream
            guard streams?.indices.contains(stream) ?? false else { return false }
            select(stream)
        }
        defer { select(nil) }
        guard let place = queue.place(of: completion.id) else { return false }
        let length = queue.inFlight[place].length
        let transferred = max(0, min(completion.transferred, length))
        let outcome: TransferDescriptor.Outcome =
            switch completion.status {
            case .completed: .completed(transferred: transferred)
            case .cancelled where transferred == length && length > 0 && kind != .control:
                .completed(transferred: transferred)
            case .cancelled: .cancelled(transferred: transferred)
            case .babbled where kind.isIsochronous && length < (schedule?.payload ?? 0):
                .failed(.isochronousBufferOverrun, transferred: transferred)
            // An isochronous endpoint has no handshake to stall with.
            case .stalled where kind.isIsochronous:
                .failed(.usbTransactionError, transferred: transferred)
            case .stalled: .failed(.stallError, transferred: transferred)
            case .babbled: .failed(.babbleDetectedError, transferred: transferred)
            case .failed, .disconnected: .failed(.usbTransactionError, transferred: transferred)
            }
        queue.setOutcome(
            request == nil ? outcome : recordPart(outcome, queue.inFlight[place]), at: place)
        if let selected = streams?.selected { streams?.markReady(selected) }
        return true
    }

    // MARK: - Streams

    /// Works on the queue of a stream, or on none; without streams there is only one queue.
    mutating func select(_ place: Int?) { streams?.select(place, &queue) }

    /// Calls `body` with each queue selected.
    mutating func forEachQueue(_ body: (inout Endpoint) -> Void) {
        guard let places = streams?.indices else {
            body(&self)
            return
        }
        let before = streams?.selected
        for place in places {
            select(place)
            body(&self)
        }
        select(before)
    }

    // MARK: - Starting

    private var hasRoom: Bool {
        // One more TRB than this may be in flight as one transfer, or nothing large could start.
        guard load.trbs < XHCILimits.trbsInFlight else { return load.transfers == 0 }
        let count = queue.inFlight.count
        // A stream must not wait for others: the device may wait for just this one.
        guard count > 0 else { return true }
        if kind == .control || queue.inFlight[count - 1].isFailed && !kind.isIsochronous {
            return false
        }
        let limit =
            kind.isIsochronous ? XHCILimits.isochronousInFlight : XHCILimits.transfersInFlight
        return load.transfers < limit && load.bytes < XHCILimits.bytesInFlight
    }

    /// Whether another transfer may be started.
    var takesTransfers: Bool { state == .running && !isStopping && hasRoom }

    /// Reads the next descriptor of the ring, if there is a whole one.
    mutating func readNext(_ bus: SystemBus, budget: inout Int) -> TransferDescriptor? {
        let descriptor = TransferRingReader.read(
            kind, at: queue.ring, start: queue.progress,
            continuing: request?.setup.direction, bus, budget: &budget)
        guard let descriptor else { return nil }
        queue.ring = descriptor.end
        queue.progress = .nothing
        return descriptor
    }

    /// Starts the transfer that is next on the ring.
    ///
    /// - Returns: whether there was one.
    private mutating func startNext(
        _ owner: SlotIdentity, _ bus: SystemBus, _ sequence: inout UInt64, budget: inout Int
    ) -> Bool {
        guard takesTransfers, let descriptor = readNext(bus, budget: &budget) else { return false }
        if descriptor.isPart {
            startPart(descriptor, owner, bus, &sequence)
        } else {
            // A Setup Stage ends what has not come to its Status Stage.
            if descriptor.isControl { request = nil }
            start(descriptor, owner, bus, &sequence)
        }
        return true
    }

    /// Gives a transfer to the device, unless its outcome is known already.
    mutating func start(
        _ descriptor: consuming TransferDescriptor, _ owner: SlotIdentity, _ bus: SystemBus,
        _ sequence: inout UInt64
    ) {
        guard descriptor.outcome == nil else {
            hold(descriptor)
            return
        }
        var transferKind = Transfer.Kind.bulk(
            stream: UInt16(truncatingIfNeeded: streams?.selectedID ?? 0))
        var direction = address.direction
        var limit = Int.max
        if descriptor.isControl {
            let setup = SetupPacket(wire: descriptor.entries[0].trb.parameter)
            transferKind = .control(setup)
            direction = setup.direction
            limit = Int(setup.length)
        } else if kind.isInterrupt {
            transferKind = .interrupt
        } else if let schedule {
            transferKind = .isochronous
            limit = schedule.payload
        }
        var buffer: TransferBuffer
        do throws(DMAError) {
            buffer = try descriptor.makeBuffer(direction, bus.memory, bus.bounceBudget)
        } catch {
            bus.log("transfer data: \(error)")
            descriptor.outcome = .failed(
                .dataBufferError, transferred: 0,
                entry: descriptor.entries.firstIndex { TransferTRB($0.trb).hasData })
            hold(descriptor)
            return
        }
        if buffer.count > limit {
            buffer = buffer.slice(from: 0, count: limit)
            descriptor.isTruncated = kind.isIsochronous
        }
        descriptor.length = buffer.count
        guard reaches(owner, bus) else {
            descriptor.outcome = .failed(.usbTransactionError, transferred: 0)
            hold(descriptor)
            return
        }
        submit(descriptor, transferKind, buffer, owner, &sequence)
    }

    /// Whether the device is there and may be talked to.
    func reaches(_ owner: SlotIdentity, _ bus: SystemBus) -> Bool {
        guard let connection = owner.connection, connection.isOpen else { return false }
        return bus.registers.isPortEnabled(connection.port)
    }

    mutating func submit(
        _ descriptor: consuming TransferDescriptor, _ kind: Transfer.Kind,
        _ buffer: TransferBuffer, _ owner: SlotIdentity, _ sequence: inout UInt64
    ) {
        sequence &+= 1
        let id = Transfer.ID(
            sequence: sequence, slot: owner.slot, endpoint: index, stream: streams?.selected ?? 0)
        descriptor.id = id
        hold(descriptor)
        owner.connection?.submit(
            Transfer(id: id, endpoint: address, kind: kind, buffer: buffer))
    }

    mutating func hold(_ descriptor: consuming TransferDescriptor) {
        load.add(descriptor)
        queue.append(descriptor)
    }

    // MARK: - Finishing

    /// Posts the events of transfers that are finished, in order.
    ///
    /// - Returns: `false` if events have no room.
    mutating func settle(
        _ owner: SlotIdentity, _ bus: inout SystemBus, force: Bool = false
    ) -> Bool {
        while state == .running, !queue.inFlight.isEmpty,
            let outcome = queue.inFlight[0].outcome
        {
            if isStopping, case .cancelled = outcome { return true }
            guard force || bus.hasRoom(in: queue.inFlight[0].interrupters) else { return false }
            let head = queue.removeFirst()
            load.remove(head)
            streams?.releaseStarved()
            switch outcome {
            case .completed(let transferred): complete(head, transferred, owner, &bus)
            case .cancelled(let transferred):
                // Nobody here asked for it: the port was reset, or the memory was taken away.
                fail(head, .usbTransactionError, transferred, entry: nil, owner, &bus)
            case .failed(let code, let transferred, let entry):
                fail(head, code, transferred, entry: entry, owner, &bus)
            }
        }
        return true
    }

    private mutating func complete(
        _ descriptor: TransferDescriptor, _ transferred: Int, _ owner: SlotIdentity,
        _ bus: inout SystemBus
    ) {
        guard writeBack(descriptor, transferred, bus) else {
            fail(descriptor, .dataBufferError, transferred, entry: nil, owner, &bus)
            return
        }
        finishPart(descriptor, transferred)
        let code: CompletionCode? = descriptor.isTruncated ? .bandwidthOverrunError : nil
        var walk = TransferWalk(descriptor, transferred: transferred, code: code)
        post(&walk, descriptor, owner, &bus)
    }

    /// Ends a transfer with an error. The context says so before the event does.
    private mutating func fail(
        _ descriptor: TransferDescriptor, _ code: CompletionCode, _ transferred: Int,
        entry: Int?, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        _ = writeBack(descriptor, transferred, bus)
        request = nil
        var walk = TransferWalk(descriptor, transferred: transferred, code: code, entry: entry)
        // Data that cannot be reached is the end of this transfer, not of the endpoint. Isochronous
        // endpoints do not halt: what they lose is lost, and the next interval is another one.
        if code != .dataBufferError, !kind.isIsochronous || code == .trbError {
            finishOtherStreams(owner, &bus)
            giveBack(owner)
            standWhere(walk, descriptor)
            queue.hasFailed = true
            setState(code == .trbError ? .error : .halted, bus)
        }
        post(&walk, descriptor, owner, &bus)
    }

    /// Tells of what streams other than the selected one have finished: it was done before the
    /// endpoint halted, and must not be done again.
    private mutating func finishOtherStreams(_ owner: SlotIdentity, _ bus: inout SystemBus) {
        guard streams != nil else { return }
        let halted = streams?.selected
        forEachQueue { endpoint in
            guard endpoint.streams?.selected != halted else { return }
            while let head = endpoint.queue.inFlight.first,
                case .completed(let transferred) = head.outcome
            {
                endpoint.load.remove(endpoint.queue.removeFirst())
                endpoint.complete(head, transferred, owner, &bus)
            }
        }
    }

    func writeBack(
        _ descriptor: TransferDescriptor, _ transferred: Int, _ bus: SystemBus
    ) -> Bool {
        guard let bounce = descriptor.bounce, transferred > 0 else { return true }
        do throws(DMAError) {
            try bounce.writeBack(transferred, bus.memory)
            return true
        } catch {
            return false
        }
    }

    func post(
        _ walk: inout TransferWalk, _ descriptor: borrowing TransferDescriptor,
        _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        while let event = walk.next(descriptor) {
            bus.post(
                .transferEvent(
                    event.code, slot: owner.slot, endpoint: index, pointer: event.pointer,
                    length: event.length, isEventData: event.isEventData),
                to: event.interrupter, interrupts: event.interrupts)
        }
    }

    /// Takes back from the device what was read ahead; the rings still have it.
    mutating func giveBack(_ owner: SlotIdentity) {
        forEachQueue { $0.giveBackQueue(owner) }
    }

    /// The same of the selected queue, but for so many transfers that are finished.
    mutating func giveBackQueue(_ owner: SlotIdentity, behind count: Int = 0) {
        // What is not due yet stands behind what the device has.
        if let position = schedule?.clear() { queue.ring = position }
        for descriptor in queue.rewind(to: count).reversed() {
            load.remove(descriptor)
            // It begins again with its Setup Stage.
            if descriptor.stages == .setup { request = nil }
            guard descriptor.outcome == nil else { continue }
            owner.connection?.abandon(descriptor.id, isCancelled: isStopping)
        }
    }

    /// Puts the queue to where a transfer failed or was stopped.
    mutating func standWhere(
        _ walk: TransferWalk, _ descriptor: borrowing TransferDescriptor
    ) {
        var preview = walk
        while preview.next(descriptor) != nil {}
        guard let place = preview.place else { return }
        queue.ring = place.position
        queue.progress = place.progress
    }

    /// Enters a state and shows it, and where the rings stand, in the contexts.
    mutating func setState(_ new: EndpointState, _ bus: SystemBus) {
        state = new
        contextInfo[bits: 0...2] = UInt32(new.rawValue)
        if streams == nil {
            bus.store(
                queue.ring.rawValue,
                at: contextAddress &+ EndpointContext.dequeuePointerOffset)
        } else if new != .running {
            forEachQueue { $0.storeStream(bus) }
        }
        bus.store(contextInfo, at: contextAddress &+ EndpointContext.stateOffset)
    }

    /// Shows where the selected stream's ring stands.
    func storeStream(_ bus: SystemBus) {
        guard let place = streams?.selected else { return }
        streams?.store(queue, of: place, bus)
    }

    /// Nothing of the endpoint is told any more, nor shown.
    mutating func setDisabled() { state = .disabled }
}
