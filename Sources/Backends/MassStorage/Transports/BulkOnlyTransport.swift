// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// The state machine of USB Mass Storage Class, Bulk-Only Transport 1.0, without input or output.
///
/// A command goes through three stages: the host sends a command block wrapper (CBW), data move in
/// one direction, and the device answers with a command status wrapper (CSW). The machine is told
/// what the device means to do with a command and says, for each transfer that the host offers, what
/// it is for. Where host and device disagree, it decides as the "thirteen cases" of section 6.7 ask:
/// a device with less to do than the host expects halts the endpoint of the data stage; one with
/// more, or in the other direction, touches nothing and reports a phase error.
struct BulkOnlyTransport {
    enum Phase: Equatable {
        /// The next OUT transfer is a CBW.
        case command
        /// Data move.
        case data(Direction)
        /// The device works; transfers wait.
        case working
        /// The next IN transfer takes the CSW.
        case status
        /// An invalid CBW came: both endpoints stay halted until the host's reset recovery (6.6.1).
        case broken
    }

    /// Endpoints of the data pipes.
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

    /// What an IN transfer is for.
    enum InAction: Equatable {
        case wait
        /// The next bytes of the data stage.
        case data(count: Int)
        case status
        /// The device's next packet is larger than the transfer: a bus error.
        case babble
    }

    /// What an OUT transfer is for.
    enum OutAction: Equatable {
        case wait
        case command
        /// The next bytes of the data stage. What the transfer holds beyond them is refused.
        case data(count: Int)
        /// The transfer contradicts the CBW.
        case phaseError
    }

    let maxPacketSize: Int
    private(set) var phase = Phase.command
    /// Endpoints that the last steps have halted; the owner takes them with ``takeHalts()``.
    private var halts: Endpoints = []

    private var tag: UInt32 = 0
    /// The host's count, `dCBWDataTransferLength`.
    private var expected = 0
    private var direction = Direction.out
    /// What moved over the bus, and how much of it meant something.
    private var transferred = 0
    private var processed = 0
    /// The device's count, less what moved.
    private var remaining = 0
    private var status = Status.passed

    init(maxPacketSize: Int) { self.maxPacketSize = maxPacketSize }

    /// Bulk-Only Mass Storage Reset: the next OUT transfer is a CBW. Halted endpoints stay halted
    /// (3.1).
    mutating func reset() {
        phase = .command
        halts = []
    }

    /// The endpoints that are to be halted now.
    mutating func takeHalts() -> Endpoints {
        let result = halts
        halts = []
        return result
    }

    /// Where in the data stage the next byte belongs.
    var position: Int { transferred }

    // MARK: - Command

    /// The CBW that an OUT transfer of `bytes` is; `nil`, and no way on but a reset, if it is none.
    mutating func receiveCommand(_ bytes: Span<UInt8>) -> CommandBlockWrapper? {
        guard let wrapper = CommandBlockWrapper(bytes) else {
            phase = .broken
            halts = [.in, .out]
            return nil
        }
        tag = wrapper.tag
        expected = Int(wrapper.transferLength)
        direction = wrapper.direction
        transferred = 0
        processed = 0
        remaining = 0
        phase = .working
        return wrapper
    }

    /// Compares what the host expects with what the device means to do.
    ///
    /// - Returns: false if they contradict each other (cases 2, 3, 7, 8, 10 and 13); the command must
    ///   then not be carried out.
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

    /// Whether an IN transfer need not wait.
    var takesIn: Bool { phase == .data(.in) || phase == .status }

    /// Whether an OUT transfer need not wait.
    var takesOut: Bool { phase == .command || phase == .data(.out) }

    func action(forIn count: Int) -> InAction {
        switch phase {
        case .data(.in): dataAction(count)
        case .status: count < CommandStatusWrapper.count ? .babble : .status
        default: .wait
        }
    }

    private func dataAction(_ count: Int) -> InAction {
        // Packets are full until the last; one that the transfer has too little room for is lost.
        if remaining > count && count % maxPacketSize != 0 { return .babble }
        return .data(count: min(count, remaining))
    }

    func action(forOut count: Int) -> OutAction {
        switch phase {
        case .command: return .command
        case .data(.out):
            // More than the host announced, or a short packet before the end of it.
            let left = expected - transferred
            let endsEarly = count < left && (count == 0 || count % maxPacketSize != 0)
            return count > left || endsEarly
                ? .phaseError : .data(count: min(count, remaining))
        default: return .wait
        }
    }

    /// Data moved over the bus; all of them count unless `processed` says otherwise.
    mutating func move(_ count: Int, processed: Int? = nil) {
        transferred += count
        self.processed += processed ?? count
        remaining -= count
        if remaining == 0 { phase = .working }
    }

    // MARK: - Status

    /// The command is done, or cannot go on. What the host still expects to move is refused.
    mutating func finish(_ status: Status) {
        self.status = status
        if expected > transferred { halts = direction == .in ? .in : .out }
        phase = .status
    }

    /// The CSW that waits.
    var statusWrapper: CommandStatusWrapper {
        CommandStatusWrapper(
            tag: tag, residue: UInt32(clamping: expected - processed), status: status)
    }

    /// The CSW has gone out.
    mutating func statusSent() { phase = .command }
}

/// A command block wrapper, CBW (5.1): what begins a command.
struct CommandBlockWrapper: Equatable {
    static let count = 31
    /// "USBC".
    static let signature: UInt32 = 0x4342_5355

    let tag: UInt32
    let transferLength: UInt32
    let direction: Direction
    let logicalUnit: UInt8
    let command: CommandBlock

    /// `nil` for what is not valid (6.2.1) or has reserved bits or lengths that mean nothing (6.2.2).
    ///
    /// A logical unit that does not exist is left to the SCSI layer, which has an answer for it.
    init?(_ bytes: Span<UInt8>) {
        guard bytes.count == Self.count, bytes.littleEndian(at: 0) == Self.signature,
            bytes[12] & 0x7f == 0, bytes[13] & 0xf0 == 0, (1...16).contains(bytes[14])
        else { return nil }
        tag = bytes.littleEndian(at: 4)
        transferLength = bytes.littleEndian(at: 8)
        direction = bytes[12] & 0x80 != 0 ? .in : .out
        logicalUnit = bytes[13]
        command = CommandBlock(bytes.extracting(15..<15 + Int(bytes[14])))
    }
}

/// A command status wrapper, CSW (5.2): what ends a command.
struct CommandStatusWrapper: Equatable {
    static let count = 13
    /// "USBS".
    static let signature: UInt32 = 0x5342_5355

    let tag: UInt32
    let residue: UInt32
    let status: BulkOnlyTransport.Status

    var bytes: InlineArray<13, UInt8> {
        InlineArray { index in
            switch index {
            case 0..<4: Self.byte(index, of: Self.signature)
            case 4..<8: Self.byte(index - 4, of: tag)
            case 8..<12: Self.byte(index - 8, of: residue)
            default: status.rawValue
            }
        }
    }

    private static func byte(_ index: Int, of word: UInt32) -> UInt8 {
        UInt8(truncatingIfNeeded: word >> UInt32(index * 8))
    }
}
