// SPDX-License-Identifier: Apache-2.0

internal import USB

/// The state machine of USB Mass Storage Class, Bulk-Only Transport 1.0, without input or output.
///
/// A command has up to three stages: the host sends a command block wrapper (CBW), data moves in
/// one direction, and the device sends a command status wrapper (CSW). The owner calls
/// ``begin(_:)`` with the data stage that the device intends, and asks for the action for each
/// transfer that the host submits.
///
/// When host and device disagree, the "thirteen cases" of section 6.7 apply. A device that moves
/// less than the host expects halts the endpoint of the data stage. A device that would move more,
/// or in the other direction, moves nothing and reports a phase error.
struct BulkOnlyTransport {
    enum Phase: Equatable {
        /// The next OUT transfer is a CBW.
        case command
        /// The data stage.
        case data(Direction)
        /// The device executes the command; transfers wait.
        case executing
        /// The next IN transfer receives the CSW.
        case status
        /// An invalid CBW was received: both endpoints stay halted until reset recovery (6.6.1).
        case resetRequired
    }

    /// A set of bulk endpoints.
    struct Endpoints: OptionSet {
        let rawValue: UInt8
        static let `in` = Endpoints(rawValue: 1)
        static let out = Endpoints(rawValue: 2)
    }

    /// `bCSWStatus`.
    enum Status: UInt8 {
        case passed = 0
        case failed = 1
        case phaseError = 2
    }

    /// The action for an IN transfer.
    enum InAction: Equatable {
        case wait
        /// Sends the next `count` bytes of the data stage.
        case data(count: Int)
        /// Sends the CSW.
        case status
        /// The device's next packet is larger than the transfer, which is a bus error.
        case babble
    }

    /// The action for an OUT transfer.
    enum OutAction: Equatable {
        case wait
        /// Receives a CBW.
        case command
        /// Receives the next `count` bytes of the data stage and refuses the rest of the transfer.
        case data(count: Int)
        /// The length of the transfer contradicts the CBW.
        case phaseError
    }

    let maxPacketSize: Int
    private(set) var phase = Phase.command
    /// Endpoints to halt that the owner has not taken yet.
    private var halts: Endpoints = []

    private var tag: UInt32 = 0
    /// `dCBWDataTransferLength`: the bytes that the host expects to transfer.
    private var expected = 0
    private var direction = Direction.out
    /// Bytes transferred over the bus.
    private var transferred = 0
    /// Of these, the bytes that the device has processed; the residue does not contain them.
    private var processed = 0
    /// Bytes of the device's data stage that have not been transferred.
    private var remaining = 0
    private var status = Status.passed

    init(maxPacketSize: Int) { self.maxPacketSize = maxPacketSize }

    /// Bulk-Only Mass Storage Reset (3.1): the next OUT transfer is a CBW. Halted endpoints stay
    /// halted.
    mutating func reset() {
        phase = .command
        halts = []
    }

    /// Returns and clears the set of endpoints to halt.
    mutating func takeHalts() -> Endpoints {
        let result = halts
        halts = []
        return result
    }

    /// The offset of the next byte in the data stage.
    var position: Int { transferred }

    // MARK: - Command

    /// Parses the CBW of an OUT transfer.
    ///
    /// - Returns: `nil` if the CBW is invalid; the transport then requires reset recovery.
    mutating func receiveCommand(_ bytes: Span<UInt8>) -> CommandBlockWrapper? {
        guard let wrapper = CommandBlockWrapper(bytes) else {
            phase = .resetRequired
            halts = [.in, .out]
            return nil
        }
        tag = wrapper.tag
        expected = Int(wrapper.transferLength)
        direction = wrapper.direction
        transferred = 0
        processed = 0
        remaining = 0
        phase = .executing
        return wrapper
    }

    /// Compares the data stage that the device intends with the CBW, and starts it.
    ///
    /// - Returns: `false` if they contradict each other (cases 2, 3, 7, 8, 10 and 13). The command
    ///   must not be executed; its status is a phase error.
    mutating func begin(_ stage: DataStage) -> Bool {
        switch stage {
        case .none: true
        case .send(let count): begin(count, .in)
        case .receive(let count): begin(count, .out)
        }
    }

    private mutating func begin(_ count: Int, _ intended: Direction) -> Bool {
        guard expected > 0, direction == intended, count <= expected else {
            finish(.phaseError)
            return false
        }
        remaining = count
        phase = .data(intended)
        return true
    }

    // MARK: - Data

    /// Whether an IN transfer can be processed now.
    var acceptsIn: Bool { phase == .data(.in) || phase == .status }

    /// Whether an OUT transfer can be processed now.
    var acceptsOut: Bool { phase == .command || phase == .data(.out) }

    /// The action for an IN transfer of `count` bytes.
    func action(forIn count: Int) -> InAction {
        switch phase {
        case .data(.in): dataAction(count)
        case .status: count < CommandStatusWrapper.count ? .babble : .status
        default: .wait
        }
    }

    private func dataAction(_ count: Int) -> InAction {
        // All packets but the last are full, and this transfer ends within a full packet.
        if remaining > count && count % maxPacketSize != 0 { return .babble }
        return .data(count: min(count, remaining))
    }

    /// The action for an OUT transfer of `count` bytes.
    func action(forOut count: Int) -> OutAction {
        switch phase {
        case .command: return .command
        case .data(.out):
            // The transfer has more bytes than the CBW, or a short packet before the end.
            let left = expected - transferred
            let endsEarly = count < left && (count == 0 || count % maxPacketSize != 0)
            return count > left || endsEarly
                ? .phaseError : .data(count: min(count, remaining))
        default: return .wait
        }
    }

    /// Advances the data stage.
    ///
    /// - Parameters:
    ///   - count: the bytes transferred over the bus.
    ///   - processed: of these, the bytes that the device has processed; by default all.
    mutating func advance(by count: Int, processed: Int? = nil) {
        transferred += count
        self.processed += processed ?? count
        remaining -= count
        if remaining == 0 { phase = .executing }
    }

    // MARK: - Status

    /// Ends the command, and halts the endpoint of the data stage if the host expects more data.
    mutating func finish(_ status: Status) {
        self.status = status
        if expected > transferred { halts = direction == .in ? .in : .out }
        phase = .status
    }

    /// The pending CSW.
    var statusWrapper: CommandStatusWrapper {
        CommandStatusWrapper(
            tag: tag, residue: UInt32(clamping: expected - processed), status: status)
    }

    /// The CSW has been sent.
    mutating func statusSent() { phase = .command }
}
