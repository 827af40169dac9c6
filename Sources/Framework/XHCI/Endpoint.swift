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

/// An endpoint with its transfer ring (xHCI 4.6.6-4.6.10, 4.8, 4.9.2).
///
/// TRBs are read ahead as far as the pipeline allows; their transfers end in order. Whatever ends
/// this early, an error or a stop, gives the TRBs that were read but not carried out back to the
/// ring: they are read again when the endpoint goes on.
struct Endpoint {
    /// The Device Context Index.
    let index: Int
    let kind: EndpointKind
    private(set) var state = EndpointState.running
    /// The next TRB to read.
    private(set) var ring: RingPosition
    /// What was done of the TRB there already.
    private var progress = PartialTransfer.nothing
    private(set) var inFlight: Deque<TransferDescriptor> = []
    private var bytesInFlight = 0
    /// Stop Endpoint waits for the device to give back what is in flight.
    private var isStopping = false
    /// When transfers are due; isochronous endpoints only.
    var schedule: IsochronousSchedule?
    /// The endpoint's part of the output Device Context, and its first doubleword.
    private let contextAddress: UInt64
    private var contextInfo: UInt32

    /// An endpoint that runs, as Address Device and Configure Endpoint make it.
    init(index: Int, context: EndpointContext, contextAddress: UInt64) {
        self.index = index
        kind = context.kind
        ring = RingPosition(rawValue: context.dequeuePointer)
        schedule = context.kind.isIsochronous ? IsochronousSchedule(context) : nil
        self.contextAddress = contextAddress
        contextInfo = context.info
    }

    var address: EndpointAddress {
        kind == .control
            ? EndpointAddress(UInt8(index / 2), .out)
            : EndpointAddress(UInt8(index / 2), index % 2 == 1 ? .in : .out)
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

    /// The doorbell: a stopped endpoint runs again.
    mutating func ringDoorbell(_ bus: SystemBus) {
        if state == .stopped { setState(.running, bus) }
    }

    /// Posts the events of what is finished and starts what the ring has.
    ///
    /// - Parameters:
    ///   - budget: TRBs that may be read; what is read is taken off.
    ///   - microframe: the time for isochronous transfers.
    mutating func visit(
        _ owner: SlotIdentity, _ bus: inout SystemBus, _ sequence: inout UInt64,
        budget: inout Int, microframe: Int64
    ) -> Visit {
        let end = budget - Limits.trbsPerVisit
        while budget > max(0, end) {
            guard settle(owner, &bus) else { return .blocked }
            let count =
                schedule == nil
                ? startNext(owner, bus, &sequence)
                : advanceSchedule(owner, &bus, &sequence, now: microframe)
            guard count > 0 else { return .idle }
            budget -= count
        }
        return .more
    }

    /// Notes how a transfer ended; `false` if it is none of this endpoint's.
    mutating func record(_ completion: Transfer.Completion) -> Bool {
        guard
            let place = inFlight.firstIndex(where: {
                $0.id == completion.id && $0.outcome == nil
            })
        else { return false }
        let length = inFlight[place].length
        let transferred = max(0, min(completion.transferred, length))
        inFlight[place].outcome =
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
        return true
    }

    // MARK: - Starting

    private var hasRoom: Bool {
        guard let last = inFlight.last else { return true }
        if kind == .control || last.isFailed && !kind.isIsochronous { return false }
        let limit =
            kind.isIsochronous ? Limits.isochronousInFlight : Limits.transfersInFlight
        return inFlight.count < limit && bytesInFlight < Limits.bytesInFlight
    }

    /// Whether another transfer may be started.
    var takesTransfers: Bool { state == .running && !isStopping && hasRoom }

    /// Reads the next descriptor of the ring, if there is a whole one.
    mutating func readNext(_ bus: SystemBus) -> TransferDescriptor? {
        let descriptor = TransferReader.read(kind, at: ring, start: progress, bus)
        guard let descriptor else { return nil }
        ring = descriptor.end
        progress = .nothing
        return descriptor
    }

    /// Starts the transfer that is next on the ring.
    ///
    /// - Returns: the TRBs that it has; 0 if there is none.
    private mutating func startNext(
        _ owner: SlotIdentity, _ bus: SystemBus, _ sequence: inout UInt64
    ) -> Int {
        guard takesTransfers, let descriptor = readNext(bus) else { return 0 }
        start(descriptor, owner, bus, &sequence)
        return descriptor.entries.count
    }

    /// Gives a transfer to the device, unless its outcome is known already.
    mutating func start(
        _ original: TransferDescriptor, _ owner: SlotIdentity, _ bus: SystemBus,
        _ sequence: inout UInt64
    ) {
        guard original.outcome == nil else {
            inFlight.append(original)
            return
        }
        var descriptor = original
        sequence &+= 1
        descriptor.id = Transfer.ID(
            rawValue: sequence << 16 | UInt64(owner.slot) << 8 | UInt64(index))
        var transferKind = Transfer.Kind.bulk(stream: 0)
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
        let all: TransferBuffer
        do throws(DMAError) {
            all = try descriptor.makeBuffer(direction, bus.memory)
        } catch {
            bus.note("transfer data: \(error.reason) at \(error.address)")
            descriptor.outcome = .failed(
                .dataBufferError, transferred: 0,
                entry: descriptor.entries.firstIndex { TransferTRB($0.trb).hasData })
            append(descriptor)
            return
        }
        let buffer = all.count > limit ? all.slice(from: 0, count: limit) : all
        descriptor.length = buffer.count
        descriptor.isTruncated = kind.isIsochronous && all.count > limit
        guard let connection = owner.connection, let device = connection.device,
            bus.registers.ports[connection.port].isEnabled
        else {
            descriptor.outcome = .failed(.usbTransactionError, transferred: 0)
            append(descriptor)
            return
        }
        append(descriptor)
        device.submit(
            Transfer(id: descriptor.id, endpoint: address, kind: transferKind, buffer: buffer))
    }

    private mutating func append(_ descriptor: TransferDescriptor) {
        bytesInFlight += descriptor.length
        inFlight.append(descriptor)
    }

    // MARK: - Finishing

    /// Posts the events of transfers that are finished, in order.
    ///
    /// - Returns: `false` if events have no room.
    private mutating func settle(
        _ owner: SlotIdentity, _ bus: inout SystemBus, force: Bool = false
    ) -> Bool {
        while state == .running, let outcome = inFlight.first?.outcome {
            if isStopping, case .cancelled = outcome { return true }
            guard let head = inFlight.first, force || bus.hasRoom(in: head.interrupters) else {
                return false
            }
            inFlight.removeFirst()
            bytesInFlight -= head.length
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
        let code: CompletionCode? = descriptor.isTruncated ? .bandwidthOverrunError : nil
        var walk = TransferWalk(descriptor, transferred: transferred, code: code)
        post(&walk, owner, &bus)
    }

    /// Ends a transfer with an error. The context says so before the event does.
    private mutating func fail(
        _ descriptor: TransferDescriptor, _ code: CompletionCode, _ transferred: Int,
        entry: Int?, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        _ = writeBack(descriptor, transferred, bus)
        var walk = TransferWalk(descriptor, transferred: transferred, code: code, entry: entry)
        // Data that cannot be reached is the end of this transfer, not of the endpoint. Isochronous
        // endpoints do not halt: what they lose is lost, and the next interval is another one.
        if code != .dataBufferError, !kind.isIsochronous || code == .trbError {
            var preview = walk
            while preview.next() != nil {}
            giveBack(owner)
            if let place = preview.place {
                ring = place.position
                progress = place.progress
            }
            setState(code == .trbError ? .error : .halted, bus)
        }
        post(&walk, owner, &bus)
    }

    private func writeBack(
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

    private func post(
        _ walk: inout TransferWalk, _ owner: SlotIdentity, _ bus: inout SystemBus
    ) {
        while let event = walk.next() {
            bus.post(
                .transferEvent(
                    event.code, slot: owner.slot, endpoint: index, pointer: event.pointer,
                    length: event.length, isEventData: event.isEventData),
                to: event.interrupter, interrupts: event.interrupts)
        }
    }

    /// Takes back from the device what was read ahead; the ring still has it.
    private mutating func giveBack(_ owner: SlotIdentity) {
        if let position = schedule?.clear() { ring = position }
        let taken = inFlight
        inFlight.removeAll()
        bytesInFlight = 0
        for descriptor in taken where descriptor.outcome == nil {
            owner.connection?.abandon(descriptor.id, isCancelled: isStopping)
        }
    }

    private mutating func setState(_ new: EndpointState, _ bus: SystemBus) {
        state = new
        contextInfo[bits: 0...2] = UInt32(new.rawValue)
        bus.store(ring.rawValue, at: contextAddress &+ EndpointContext.dequeuePointerOffset)
        bus.store(contextInfo, at: contextAddress &+ EndpointContext.stateOffset)
    }

    // MARK: - Stopping

    /// Begins Stop Endpoint: asks the device for all that is in flight.
    mutating func beginStop(_ owner: SlotIdentity) {
        isStopping = true
        for descriptor in inFlight where descriptor.outcome == nil {
            owner.connection?.device?.cancel(descriptor.id)
        }
    }

    /// Whether the device has given everything back.
    var isReadyToStop: Bool { inFlight.allSatisfy { $0.outcome != nil } }

    /// Ends Stop Endpoint (xHCI 4.6.9): transfers that finished in the meantime have their events, a
    /// Stopped event tells how far the next one came, and the rest goes back to the ring. What the
    /// device has not given back by now is given up. An idle endpoint has no event.
    ///
    /// - Returns: `false` if the endpoint halted on the way.
    mutating func finishStop(_ owner: SlotIdentity, _ bus: inout SystemBus) -> Bool {
        defer { isStopping = false }
        _ = settle(owner, &bus, force: true)
        guard state == .running else { return false }
        guard let head = inFlight.first else {
            giveBack(owner)
            setState(.stopped, bus)
            return true
        }
        var transferred = 0
        if case .cancelled(let count) = head.outcome { transferred = count }
        giveBack(owner)
        _ = writeBack(head, transferred, bus)
        var walk = TransferWalk(head, transferred: transferred, code: .stopped)
        var preview = walk
        while preview.next() != nil {}
        if let place = preview.place {
            ring = place.position
            progress = place.progress
        }
        setState(.stopped, bus)
        post(&walk, owner, &bus)
        return true
    }

    // MARK: - Other commands

    /// Reset Endpoint (xHCI 4.6.8) of a halted endpoint.
    ///
    /// - Parameter preservingTransfer: TSP: the transfer goes on where it failed.
    mutating func reset(preservingTransfer: Bool, _ owner: SlotIdentity, _ bus: SystemBus) {
        if !preservingTransfer {
            progress = .nothing
            owner.connection?.device?.resetEndpoint(address)
        }
        setState(.stopped, bus)
    }

    /// Set TR Dequeue Pointer (xHCI 4.6.10) of a stopped endpoint, or of one in error.
    mutating func setDequeuePointer(_ position: RingPosition, _ bus: SystemBus) {
        ring = position
        progress = .nothing
        setState(.stopped, bus)
    }

    /// The endpoint is dropped: nothing of it is told any more.
    mutating func abandon(_ owner: SlotIdentity, resetting: Bool = true) {
        giveBack(owner)
        state = .disabled
        if resetting, index > 1 { owner.connection?.device?.resetEndpoint(address) }
    }

    /// The device is gone: everything in flight fails.
    mutating func loseDevice() {
        for place in inFlight.indices where inFlight[place].outcome == nil {
            inFlight[place].outcome = .failed(.usbTransactionError, transferred: 0)
        }
    }

    /// Cancels transfers whose data lie in memory that is taken away.
    mutating func cancelTransfers(
        touching start: GuestAddress, count: UInt64, _ owner: SlotIdentity
    ) {
        for descriptor in inFlight
        where descriptor.outcome == nil && descriptor.touches(start, count: count) {
            owner.connection?.device?.cancel(descriptor.id)
        }
    }
}
