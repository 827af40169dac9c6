// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// The pipes of a stick: the control pipe with its halted endpoints, the transport, and the transfers
/// that wait in the two bulk pipes.
///
/// ``next()`` takes from the bulk pipes whatever the transport can use now, one transfer at a time.
struct StoragePipes {
    var control: DefaultControlPipe
    var transport: BulkOnlyTransport
    private var inTransfers: Deque<Transfer> = []
    private var outTransfers: Deque<Transfer> = []

    /// What becomes of a transfer that was taken.
    enum Step {
        /// A command block wrapper.
        case command(Transfer)
        /// The next bytes of the data stage. What the transfer holds beyond them is refused.
        case receive(Transfer, count: Int)
        case send(Transfer, count: Int)
        /// The command status wrapper is in the transfer.
        case status(Transfer, count: Int)
        /// Its endpoint does not exist, as the device is not configured.
        case fail(Transfer)
        /// Its endpoint is halted.
        case refuse(Transfer)
        /// It contradicts the command.
        case phaseError(Transfer)
        /// The device's next packet is larger than the transfer.
        case babble(Transfer)
    }

    init(control: DefaultControlPipe, transport: BulkOnlyTransport) {
        self.control = control
        self.transport = transport
    }

    /// Lets a transfer wait; false if it is for no bulk pipe.
    mutating func enqueue(_ transfer: consuming Transfer) -> Bool {
        if transfer.endpoint == StorageDescriptors.inEndpoint {
            inTransfers.append(transfer)
        } else if transfer.endpoint == StorageDescriptors.outEndpoint {
            outTransfers.append(transfer)
        } else {
            return false
        }
        return true
    }

    /// Takes back a transfer that waits.
    mutating func remove(_ id: Transfer.ID) -> Bool {
        if let index = inTransfers.firstIndex(where: { $0.id == id }) {
            inTransfers.remove(at: index)
        } else if let index = outTransfers.firstIndex(where: { $0.id == id }) {
            outTransfers.remove(at: index)
        } else {
            return false
        }
        return true
    }

    /// Takes back all transfers that wait.
    mutating func removeAll() -> [Transfer] {
        let all = Array(inTransfers) + outTransfers
        inTransfers = []
        outTransfers = []
        return all
    }

    /// Halts what the transport has halted.
    mutating func applyHalts() {
        let halts = transport.takeHalts()
        if halts.contains(.in) { control.halt(StorageDescriptors.inEndpoint) }
        if halts.contains(.out) { control.halt(StorageDescriptors.outEndpoint) }
    }

    // MARK: - Steps

    /// Takes the next transfer that can be used; `nil` if there is none or it must wait.
    mutating func next() -> Step? { nextOut() ?? nextIn() }

    private mutating func nextOut() -> Step? {
        guard !outTransfers.isEmpty else { return nil }
        if control.configuration == 0 { return .fail(outTransfers.removeFirst()) }
        if control.isHalted(StorageDescriptors.outEndpoint) {
            return .refuse(outTransfers.removeFirst())
        }
        // Mostly it has to wait, and a look at what it holds is not for nothing.
        guard transport.takesOut, let count = outTransfers.first?.buffer.count else { return nil }
        switch transport.action(forOut: count) {
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
        guard transport.takesIn, let count = inTransfers.first?.buffer.count else { return nil }
        switch transport.action(forIn: count) {
        case .wait: return nil
        case .data(let count): return .send(inTransfers.removeFirst(), count: count)
        case .status:
            let transfer = inTransfers.removeFirst()
            let count = transfer.buffer.copy(from: transport.statusWrapper.bytes.span)
            transport.statusSent()
            return .status(transfer, count: count)
        case .babble: return .babble(inTransfers.removeFirst())
        }
    }
}
