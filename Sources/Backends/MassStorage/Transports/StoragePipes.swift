// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// The pipes of a stick: the control pipe with its halted endpoints, the transport that the host has
/// chosen, and the transfers that wait in the bulk pipes.
///
/// ``next()`` takes from the bulk pipes whatever the transport can use now, one transfer at a time.
struct StoragePipes {
    var control: DefaultControlPipe
    /// The host has chosen UAS instead of Bulk-Only Transport, which is what there is at first.
    private(set) var usesUAS = false
    private(set) var bulkOnly: BulkOnlyTransport
    private(set) var uas: UASTransport

    private var inTransfers: Deque<Transfer> = []
    private var outTransfers: Deque<Transfer> = []
    /// By stream. A stream that was used once keeps its place.
    private var statusTransfers: [UInt16: Deque<Transfer>] = [:]
    private var commandTransfers: Deque<Transfer> = []
    /// A reply or a status transfer has come since the last search for such that meet.
    private var mayHaveStatus = false

    /// What is to be done next.
    enum Step {
        /// A command block wrapper.
        case command(Transfer)
        /// A request of UAS.
        case request(Transfer)
        /// A command of UAS has its turn.
        case begin(UASTransport.Command)
        /// The next bytes of the data stage. What the transfer holds beyond them is not used.
        case receive(Transfer, count: Int)
        case send(Transfer, count: Int)
        /// The status is in the transfer; with UAS it is this one.
        case status(Transfer, count: Int, UASReply?)
        /// Nothing is left to move.
        case unused(Transfer)
        /// Its endpoint does not exist, as the device is not configured.
        case fail(Transfer)
        /// Its endpoint is halted.
        case refuse(Transfer)
        /// It contradicts the command.
        case phaseError(Transfer)
        /// The device's next packet is larger than the transfer.
        case babble(Transfer)
    }

    init(control: DefaultControlPipe, maxPacketSize: Int) {
        self.control = control
        bulkOnly = BulkOnlyTransport(maxPacketSize: maxPacketSize)
        uas = UASTransport(maxPacketSize: maxPacketSize)
    }

    // MARK: - Transfers that wait

    /// Lets a transfer wait; false if it is for no bulk pipe.
    mutating func enqueue(_ transfer: consuming Transfer) -> Bool {
        switch transfer.endpoint {
        case StorageDescriptors.inEndpoint: inTransfers.append(transfer)
        case StorageDescriptors.outEndpoint: outTransfers.append(transfer)
        case StorageDescriptors.statusEndpoint where usesUAS:
            statusTransfers[transfer.stream, default: []].append(transfer)
            mayHaveStatus = true
        case StorageDescriptors.commandEndpoint where usesUAS: commandTransfers.append(transfer)
        default: return false
        }
        return true
    }

    /// Takes back a transfer that waits.
    mutating func remove(_ id: Transfer.ID) -> Bool {
        if inTransfers.remove(id) || outTransfers.remove(id) {
            uas.withdrawn()
            return true
        }
        if commandTransfers.remove(id) { return true }
        for stream in statusTransfers.keys where statusTransfers[stream]?.remove(id) == true {
            return true
        }
        return false
    }

    /// Takes back all transfers that wait.
    mutating func removeAll() -> [Transfer] {
        let all = Array(inTransfers) + outTransfers
        inTransfers = []
        outTransfers = []
        return all + removeUAS()
    }

    /// Takes back those of endpoints that Bulk-Only Transport does not have.
    private mutating func removeUAS() -> [Transfer] {
        let all = statusTransfers.values.flatMap { Array($0) } + commandTransfers
        statusTransfers = [:]
        commandTransfers = []
        return all
    }

    // MARK: - Transport

    /// A reset of the device or of the transport, or a choice of the host's: nothing is under way.
    ///
    /// - Returns: transfers whose endpoints are no more.
    mutating func reset() -> [Transfer] {
        usesUAS =
            control.configuration != 0
            && control.alternateSetting(ofInterface: 0) == StorageDescriptors.uasSetting
        bulkOnly.reset()
        uas.reset()
        return usesUAS ? [] : removeUAS()
    }

    mutating func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        if endpoint == StorageDescriptors.statusEndpoint { uas.streamCount = count }
    }

    mutating func receiveCommand(_ bytes: Span<UInt8>) -> CommandBlockWrapper? {
        let wrapper = bulkOnly.receiveCommand(bytes)
        applyHalts()
        return wrapper
    }

    mutating func receiveRequest(_ bytes: Span<UInt8>) -> UASTransport.Effect {
        let effect = uas.receive(bytes)
        mayHaveStatus = true
        if effect == .refuse { control.halt(StorageDescriptors.commandEndpoint) }
        return effect
    }

    /// Data transfers of a command that ends without them, where they can be told from others'.
    mutating func takeUnused() -> [Transfer] {
        guard usesUAS, uas.streamCount > 0, let stream = uas.current else { return [] }
        return inTransfers.removeAll(of: stream) + outTransfers.removeAll(of: stream)
    }

    /// The medium is another one, or none.
    mutating func mediumChanged() { uas.mediumChanged() }

    /// Says what the command means to move.
    ///
    /// - Returns: false if the host expects something else; the command has ended then.
    mutating func begin(_ stage: DataStage) -> Bool {
        if usesUAS {
            uas.begin(stage)
            mayHaveStatus = true
            return true
        }
        defer { applyHalts() }
        return bulkOnly.begin(stage)
    }

    /// Where in the data stage the next byte belongs.
    var position: Int { usesUAS ? uas.position : bulkOnly.position }

    var maxPacketSize: Int { bulkOnly.maxPacketSize }

    /// Data moved over the bus; all of them count unless `processed` says otherwise.
    ///
    /// - Returns: whether these were the last.
    mutating func move(_ count: Int, processed: Int? = nil) -> Bool {
        if usesUAS {
            uas.move(count)
            return uas.direction == nil
        }
        bulkOnly.move(count, processed: processed)
        return bulkOnly.phase == .working
    }

    /// The command is done, or cannot go on.
    mutating func finish(_ error: SenseData?) {
        if usesUAS {
            uas.finish(error)
            mayHaveStatus = true
            return
        }
        bulkOnly.finish(error == nil ? .passed : .failed)
        applyHalts()
    }

    /// A transfer contradicts the command of Bulk-Only Transport, which cannot go on.
    mutating func finishWithPhaseError() {
        bulkOnly.finish(.phaseError)
        applyHalts()
    }

    /// How a transfer ends that is longer than what the command moves: UAS tells the host by the
    /// status alone, Bulk-Only Transport by a halt.
    var statusOfExcess: Transfer.Status { usesUAS ? .completed : .stalled }

    /// Halts what Bulk-Only Transport has halted.
    private mutating func applyHalts() {
        let halts = bulkOnly.takeHalts()
        if halts.contains(.in) { control.halt(StorageDescriptors.inEndpoint) }
        if halts.contains(.out) { control.halt(StorageDescriptors.outEndpoint) }
    }

    // MARK: - Steps

    /// Takes what is next; `nil` if there is nothing or it must wait.
    mutating func next() -> Step? {
        usesUAS ? nextBesideCommand() ?? nextOfCommand() : nextOut() ?? nextIn()
    }

    /// The same while the command at work keeps the device busy.
    mutating func nextWhileBusy() -> Step? { usesUAS ? nextBesideCommand() : nil }
}

// MARK: - Bulk-Only Transport

extension StoragePipes {
    private mutating func nextOut() -> Step? {
        guard !outTransfers.isEmpty else { return nil }
        if control.configuration == 0 { return .fail(outTransfers.removeFirst()) }
        if control.isHalted(StorageDescriptors.outEndpoint) {
            return .refuse(outTransfers.removeFirst())
        }
        // Mostly it has to wait, and a look at what it holds is not for nothing.
        guard bulkOnly.takesOut else { return nil }
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
        if control.isHalted(StorageDescriptors.inEndpoint) {
            return .refuse(inTransfers.removeFirst())
        }
        guard bulkOnly.takesIn else { return nil }
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

extension StoragePipes {
    private mutating func nextBesideCommand() -> Step? {
        nextHalted() ?? nextStatus() ?? nextRequest()
    }

    private mutating func nextOfCommand() -> Step? {
        if let command = uas.nextCommand() { return .begin(command) }
        return nextData(.in) ?? nextData(.out)
    }

    private mutating func nextHalted() -> Step? {
        if control.isHalted(StorageDescriptors.inEndpoint), let transfer = inTransfers.popFirst() {
            return .refuse(transfer)
        }
        if control.isHalted(StorageDescriptors.outEndpoint),
            let transfer = outTransfers.popFirst()
        {
            return .refuse(transfer)
        }
        if control.isHalted(StorageDescriptors.commandEndpoint),
            let transfer = commandTransfers.popFirst()
        {
            return .refuse(transfer)
        }
        guard control.isHalted(StorageDescriptors.statusEndpoint) else { return nil }
        for stream in statusTransfers.keys {
            if let transfer = statusTransfers[stream]?.popFirst() { return .refuse(transfer) }
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
        guard uas.takesRequests, let transfer = commandTransfers.popFirst() else { return nil }
        return .request(transfer)
    }

    private mutating func nextData(_ direction: Direction) -> Step? {
        guard uas.takesData(direction), let transfer = takeData(direction) else { return nil }
        switch uas.use(transfer.buffer.count, direction) {
        case .data(let count):
            return direction == .in
                ? .send(transfer, count: count) : .receive(transfer, count: count)
        case .mismatch: return direction == .in ? .babble(transfer) : .phaseError(transfer)
        case .none:
            mayHaveStatus = true
            return .unused(transfer)
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
