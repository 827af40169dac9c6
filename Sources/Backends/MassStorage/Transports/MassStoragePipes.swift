// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// The pipes of the device: the default control pipe with the halted endpoints, the transport that
/// the host has selected, and the transfers that wait in the bulk pipes.
///
/// ``next()`` takes transfers from the bulk pipes one at a time, as the transport can process them.
struct MassStoragePipes {
    var control: DefaultControlPipe
    /// The host has selected the alternate setting of UAS; the default is Bulk-Only Transport.
    private(set) var usesUAS = false
    private(set) var bulkOnly: BulkOnlyTransport
    private(set) var uas: UASTransport

    private var inTransfers: Deque<Transfer> = []
    private var outTransfers: Deque<Transfer> = []
    /// Transfers of the status pipe by stream. The queue of a stream is kept when it becomes empty.
    private var statusTransfers: [UInt16: Deque<Transfer>] = [:]
    private var commandTransfers: Deque<Transfer> = []
    /// Whether a reply may have a status transfer: set when either is added, cleared when
    /// ``nextStatus()`` finds none.
    private var mayHaveStatus = false

    /// The next step of the device.
    enum Step {
        /// Receives a CBW.
        case command(Transfer)
        /// Receives an information unit of UAS.
        case request(Transfer)
        /// Starts a command of UAS.
        case begin(UASTransport.Command)
        /// Receives the next `count` bytes of the data stage, and no more of the transfer.
        case receive(Transfer, count: Int)
        /// Sends the next `count` bytes of the data stage.
        case send(Transfer, count: Int)
        /// Completes a transfer that contains the CSW, or the reply of UAS.
        case status(Transfer, count: Int, UASReply?)
        /// Completes a data transfer of UAS for which nothing is left to move.
        case discard(Transfer)
        /// Fails a bulk transfer, because the device is not configured.
        case fail(Transfer)
        /// Stalls a transfer of a halted endpoint.
        case stall(Transfer)
        /// Ends a command, because the length of a transfer contradicts it.
        case phaseError(Transfer)
        /// Fails a transfer that is smaller than the device's next packet.
        case babble(Transfer)
    }

    init(control: DefaultControlPipe, maxPacketSize: Int) {
        self.control = control
        bulkOnly = BulkOnlyTransport(maxPacketSize: maxPacketSize)
        uas = UASTransport(maxPacketSize: maxPacketSize)
    }

    // MARK: - Waiting transfers

    /// Queues a transfer.
    ///
    /// - Returns: `false` if its endpoint is not a bulk pipe of the selected transport.
    mutating func enqueue(_ transfer: consuming Transfer) -> Bool {
        switch transfer.endpoint {
        case MassStorageDescriptors.inEndpoint: inTransfers.append(transfer)
        case MassStorageDescriptors.outEndpoint: outTransfers.append(transfer)
        case MassStorageDescriptors.statusEndpoint where usesUAS:
            statusTransfers[transfer.stream, default: []].append(transfer)
            mayHaveStatus = true
        case MassStorageDescriptors.commandEndpoint where usesUAS: commandTransfers.append(transfer)
        default: return false
        }
        return true
    }

    /// Removes a waiting transfer.
    ///
    /// - Returns: `false` if no waiting transfer has this identifier.
    mutating func remove(_ id: Transfer.ID) -> Bool {
        if inTransfers.remove(id) || outTransfers.remove(id) {
            uas.dataTransferCancelled()
            return true
        }
        if commandTransfers.remove(id) { return true }
        for stream in statusTransfers.keys where statusTransfers[stream]?.remove(id) == true {
            return true
        }
        return false
    }

    /// Removes all waiting transfers and returns them.
    mutating func removeAll() -> [Transfer] {
        let all = Array(inTransfers) + outTransfers
        inTransfers = []
        outTransfers = []
        return all + removeUAS()
    }

    /// Removes the waiting transfers of the endpoints that only UAS has.
    private mutating func removeUAS() -> [Transfer] {
        let streams = statusTransfers.keys.sorted()
        let all = streams.flatMap { Array(statusTransfers[$0] ?? []) } + commandTransfers
        statusTransfers = [:]
        commandTransfers = []
        return all
    }

    // MARK: - Transport

    /// Resets both transports, and selects the one of the present configuration.
    ///
    /// - Returns: transfers whose endpoints no longer exist.
    mutating func reset() -> [Transfer] {
        usesUAS =
            control.configuration != 0
            && control.alternateSetting(ofInterface: 0) == MassStorageDescriptors.uasSetting
        bulkOnly.reset()
        uas.reset()
        return usesUAS ? [] : removeUAS()
    }

    mutating func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        if endpoint == MassStorageDescriptors.statusEndpoint { uas.streamCount = count }
    }

    /// Parses a CBW; `nil` if it is invalid.
    mutating func receiveCommand(_ bytes: Span<UInt8>) -> CommandBlockWrapper? {
        let wrapper = bulkOnly.receiveCommand(bytes)
        applyHalts()
        return wrapper
    }

    /// Processes an information unit of UAS.
    mutating func receiveRequest(_ bytes: Span<UInt8>) -> UASTransport.RequestEffect {
        let effect = uas.receive(bytes)
        mayHaveStatus = true
        if effect == .refuse { control.halt(MassStorageDescriptors.commandEndpoint) }
        return effect
    }

    /// Removes the waiting data transfers of the current command of UAS. Without streams they
    /// cannot be distinguished from those of other commands, so none are removed.
    mutating func takeUnusedData() -> [Transfer] {
        guard usesUAS, uas.streamCount > 0, let stream = uas.current else { return [] }
        return inTransfers.removeAll(of: stream) + outTransfers.removeAll(of: stream)
    }

    /// Marks queued UAS commands stale, because the medium has been removed or replaced.
    mutating func mediumChanged() { uas.mediumChanged() }

    /// Starts the data stage of a command.
    ///
    /// - Returns: `false` if the host expects a different one; the command then has ended.
    mutating func begin(_ stage: DataStage) -> Bool {
        if usesUAS {
            uas.begin(stage)
            mayHaveStatus = true
            return true
        }
        defer { applyHalts() }
        return bulkOnly.begin(stage)
    }

    /// The offset of the next byte in the data stage.
    var position: Int { usesUAS ? uas.position : bulkOnly.position }

    var maxPacketSize: Int { bulkOnly.maxPacketSize }

    /// Advances the data stage.
    ///
    /// - Parameters:
    ///   - count: the bytes transferred over the bus.
    ///   - processed: of these, the bytes that the device has processed; by default all.
    /// - Returns: whether the data stage is complete.
    mutating func advance(by count: Int, processed: Int? = nil) -> Bool {
        if usesUAS {
            uas.advance(by: count)
            return uas.direction == nil
        }
        bulkOnly.advance(by: count, processed: processed)
        return bulkOnly.phase == .executing
    }

    /// Ends a command with its status.
    mutating func finish(_ error: SenseData?) {
        if usesUAS {
            uas.finish(error)
            mayHaveStatus = true
            return
        }
        bulkOnly.finish(error == nil ? .passed : .failed)
        applyHalts()
    }

    /// Ends a command of Bulk-Only Transport with a phase error.
    mutating func finishWithPhaseError() {
        bulkOnly.finish(.phaseError)
        applyHalts()
    }

    /// The status of a data transfer that is longer than the data: UAS reports the excess in the
    /// status alone, Bulk-Only Transport halts the endpoint.
    var statusOfExcess: Transfer.Status { usesUAS ? .completed : .stalled }

    private mutating func applyHalts() {
        let halts = bulkOnly.takeHalts()
        if halts.contains(.in) { control.halt(MassStorageDescriptors.inEndpoint) }
        if halts.contains(.out) { control.halt(MassStorageDescriptors.outEndpoint) }
    }

    // MARK: - Steps

    /// Takes the next step; `nil` if there is nothing to do until a transfer arrives.
    mutating func next() -> Step? {
        usesUAS ? nextIndependentStep() ?? nextCommandStep() : nextOut() ?? nextIn()
    }

    /// Takes the next step that is possible while the worker executes the current command.
    mutating func nextWhileBusy() -> Step? { usesUAS ? nextIndependentStep() : nil }
}

// MARK: - Bulk-Only Transport

extension MassStoragePipes {
    private mutating func nextOut() -> Step? {
        guard !outTransfers.isEmpty else { return nil }
        if control.configuration == 0 { return .fail(outTransfers.removeFirst()) }
        if control.isHalted(MassStorageDescriptors.outEndpoint) {
            return .stall(outTransfers.removeFirst())
        }
        // Checked first: usually the transfer has to wait, and reading its buffer's size is not
        // free.
        guard bulkOnly.acceptsOut else { return nil }
        switch bulkOnly.action(forOut: outTransfers[0].buffer.count) {
        case .wait: return nil
        case .command: return .command(outTransfers.removeFirst())
        case .data(let count): return .receive(outTransfers.removeFirst(), count: count)
        case .phaseError: return .phaseError(outTransfers.removeFirst())
        }
    }

    private mutating func nextIn() -> Step? {
        guard !inTransfers.isEmpty else { return nil }
        if control.configuration == 0 { return .fail(inTransfers.removeFirst()) }
        if control.isHalted(MassStorageDescriptors.inEndpoint) {
            return .stall(inTransfers.removeFirst())
        }
        guard bulkOnly.acceptsIn else { return nil }
        switch bulkOnly.action(forIn: inTransfers[0].buffer.count) {
        case .wait: return nil
        case .data(let count): return .send(inTransfers.removeFirst(), count: count)
        case .status:
            let transfer = inTransfers.removeFirst()
            let count = transfer.buffer.copy(from: bulkOnly.statusWrapper.bytes.span)
            bulkOnly.statusSent()
            return .status(transfer, count: count, nil)
        case .babble: return .babble(inTransfers.removeFirst())
        }
    }
}

// MARK: - USB Attached SCSI

extension MassStoragePipes {
    /// Steps that do not depend on the current command.
    private mutating func nextIndependentStep() -> Step? {
        nextHalted() ?? nextStatus() ?? nextRequest()
    }

    private mutating func nextCommandStep() -> Step? {
        if let command = uas.nextCommand() { return .begin(command) }
        return nextData(.in) ?? nextData(.out)
    }

    private mutating func nextHalted() -> Step? {
        if control.isHalted(MassStorageDescriptors.inEndpoint),
            let transfer = inTransfers.popFirst()
        {
            return .stall(transfer)
        }
        if control.isHalted(MassStorageDescriptors.outEndpoint),
            let transfer = outTransfers.popFirst()
        {
            return .stall(transfer)
        }
        if control.isHalted(MassStorageDescriptors.commandEndpoint),
            let transfer = commandTransfers.popFirst()
        {
            return .stall(transfer)
        }
        guard control.isHalted(MassStorageDescriptors.statusEndpoint) else { return nil }
        for stream in statusTransfers.keys.sorted() {
            if let transfer = statusTransfers[stream]?.popFirst() { return .stall(transfer) }
        }
        return nil
    }

    private mutating func nextStatus() -> Step? {
        guard mayHaveStatus else { return nil }
        for index in uas.replies.indices {
            let reply = uas.replies[index]
            guard let transfer = statusTransfers[uas.stream(of: reply)]?.popFirst() else {
                continue
            }
            let bytes = reply.bytes
            guard transfer.buffer.count >= bytes.count else { return .babble(transfer) }
            uas.removeReply(at: index)
            return .status(transfer, count: transfer.buffer.copy(from: bytes), reply)
        }
        mayHaveStatus = false
        return nil
    }

    private mutating func nextRequest() -> Step? {
        guard uas.acceptsRequests, let transfer = commandTransfers.popFirst() else { return nil }
        return .request(transfer)
    }

    private mutating func nextData(_ direction: Direction) -> Step? {
        guard uas.acceptsData(direction), let transfer = takeData(direction) else { return nil }
        switch uas.receiveData(transfer.buffer.count, direction) {
        case .data(let count):
            return direction == .in
                ? .send(transfer, count: count) : .receive(transfer, count: count)
        case .mismatch: return direction == .in ? .babble(transfer) : .phaseError(transfer)
        case .discard:
            mayHaveStatus = true
            return .discard(transfer)
        }
    }

    private mutating func takeData(_ direction: Direction) -> Transfer? {
        switch direction {
        case .in:
            inTransfers.firstIndex { uas.isCurrent($0.stream) }.map { inTransfers.remove(at: $0) }
        case .out:
            outTransfers.firstIndex { uas.isCurrent($0.stream) }
                .map { outTransfers.remove(at: $0) }
        }
    }
}

extension Deque<Transfer> {
    fileprivate mutating func remove(_ id: Transfer.ID) -> Bool {
        guard let index = firstIndex(where: { $0.id == id }) else { return false }
        remove(at: index)
        return true
    }

    fileprivate mutating func removeAll(of stream: UInt16) -> [Transfer] {
        guard contains(where: { $0.stream == stream }) else { return [] }
        let all = filter { $0.stream == stream }
        removeAll { $0.stream == stream }
        return Array(all)
    }
}
