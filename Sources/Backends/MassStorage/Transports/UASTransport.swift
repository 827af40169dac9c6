// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// The state machine of USB Attached SCSI (UAS, INCITS 471), without input or output.
///
/// A host queues commands, each under a tag, without waiting for their predecessors. The device
/// executes them one at a time in the order of arrival. With streams (SuperSpeed) the data and
/// status of a command use the stream whose number is its tag; without streams the device sends
/// READ READY or WRITE READY on the status pipe before the data of a command move.
struct UASTransport {
    /// A queued command.
    struct Command: Equatable {
        let tag: UInt16
        let unit: UInt8
        let cdb: CommandDescriptorBlock
        /// The medium that was present when the command arrived; see ``mediumChanged()``.
        let mediumGeneration: Int
    }

    /// The effect of a request on the current command, the logical unit and the command pipe.
    enum RequestEffect {
        case none
        /// The current command is aborted; it gets no status.
        case abort
        /// The logical unit is reset. The current command, if any, is aborted.
        case reset
        /// The command pipe halts: the request has no valid tag to which a reply could go.
        case refuse
    }

    /// The state of READ READY or WRITE READY, which requests one data transfer from the host.
    private enum DataRequest {
        case none
        case sent
        case answered
    }

    let maxPacketSize: Int
    /// Streams of the status and data pipes; 0 without streams.
    var streamCount = 0

    /// The tag of the current command, the one being executed.
    private(set) var current: UInt16?
    /// The direction of the current command's data stage; `nil` outside of it.
    private(set) var direction: Direction?
    /// The offset of the next byte in the data stage.
    private(set) var position = 0
    private var remaining = 0
    private var dataRequest = DataRequest.none
    /// The status of the current command, if it has ended before the requested data transfer
    /// arrived.
    private var delayedReply: UASReply.Content?
    /// Data transfers that were requested for aborted commands and have not arrived.
    private var surplusIn = 0
    private var surplusOut = 0
    private var queue: Deque<Command> = []
    /// Replies that the host has not fetched.
    private(set) var replies: Deque<UASReply> = []
    private var mediumGeneration = 0

    init(maxPacketSize: Int) { self.maxPacketSize = maxPacketSize }

    /// Returns to the power-on state, except for the streams, which the controller configures.
    mutating func reset() {
        clearCurrent()
        queue = []
        replies = []
        (surplusIn, surplusOut) = (0, 0)
    }

    /// Marks the queued commands stale: they were sent for the medium that has been removed.
    mutating func mediumChanged() { mediumGeneration += 1 }

    /// Whether a command arrived before the medium was changed.
    func isStale(_ command: Command) -> Bool { command.mediumGeneration != mediumGeneration }

    // MARK: - Command pipe

    /// Whether the next request can be processed: there is room for its reply.
    var acceptsRequests: Bool { replies.count < MassStorageLimits.uasReplies }

    /// Queues a command, or executes a task management function.
    mutating func receive(_ bytes: Span<UInt8>) -> RequestEffect {
        guard let request = UASRequest(bytes), streamCount == 0 || hasStream(request.tag) else {
            return .refuse
        }
        if isInUse(request.tag) {
            let wasCurrent = abort { $0 == request.tag }
            reply(request.tag, .response(.overlappedTag))
            return wasCurrent ? .abort : .none
        }
        switch request.content {
        case .command(let cdb, let unit, let isHeadOfQueue):
            guard queue.count < MassStorageLimits.uasCommands else {
                reply(request.tag, .taskSetFull)
                return .none
            }
            let command = Command(
                tag: request.tag, unit: unit, cdb: cdb, mediumGeneration: mediumGeneration)
            if isHeadOfQueue { queue.prepend(command) } else { queue.append(command) }
            return .none
        case .taskManagement(let function, let unit, let tag):
            guard unit == 0 || function == .nexusReset else {
                reply(request.tag, .response(.incorrectLogicalUnit))
                return .none
            }
            let (response, effect) = execute(function, on: tag)
            reply(request.tag, .response(response))
            return effect
        case .invalid:
            reply(request.tag, .response(.invalidUnit))
            return .none
        }
    }

    private mutating func execute(
        _ function: TaskManagementFunction?, on tag: UInt16
    ) -> (UASReply.Response, RequestEffect) {
        switch function {
        case .abortTask: return (.complete, abort { $0 == tag } ? .abort : .none)
        case .abortTaskSet, .clearTaskSet: return (.complete, abort { _ in true } ? .abort : .none)
        case .logicalUnitReset, .nexusReset:
            _ = abort { _ in true }
            return (.complete, .reset)
        case .queryTask: return (isInUse(tag) ? .succeeded : .complete, .none)
        case .queryTaskSet:
            return (current != nil || !queue.isEmpty ? .succeeded : .complete, .none)
        case .clearAutoContingentAllegiance, nil: return (.notSupported, .none)
        }
    }

    private func hasStream(_ tag: UInt16) -> Bool { tag > 0 && Int(tag) <= streamCount }

    /// Whether a command has this tag, which it keeps until the host has fetched its status.
    private func isInUse(_ tag: UInt16) -> Bool {
        current == tag || queue.contains { $0.tag == tag }
            || replies.contains { $0.tag == tag && $0.isOfCommand }
    }

    /// Aborts the commands whose tags match, and drops their replies.
    ///
    /// - Returns: whether the current command is among them.
    private mutating func abort(where matches: (UInt16) -> Bool) -> Bool {
        queue.removeAll { matches($0.tag) }
        let isReadyPending = replies.contains { $0.isReady }
        replies.removeAll { $0.isOfCommand && matches($0.tag) }
        guard let current, matches(current) else { return false }
        if dataRequest == .sent, !isReadyPending {
            if direction == .in { surplusIn += 1 } else { surplusOut += 1 }
        }
        clearCurrent()
        return true
    }

    private mutating func clearCurrent() {
        current = nil
        direction = nil
        dataRequest = .none
        delayedReply = nil
    }

    // MARK: - Commands

    /// Dequeues the next command, if there is no current one.
    mutating func nextCommand() -> Command? {
        guard current == nil, let command = queue.popFirst() else { return nil }
        current = command.tag
        position = 0
        remaining = 0
        return command
    }

    /// Starts the data stage of the current command.
    mutating func begin(_ stage: DataStage) {
        switch stage {
        case .none: return
        case .send(let count): begin(count, .in)
        case .receive(let count): begin(count, .out)
        }
    }

    private mutating func begin(_ count: Int, _ direction: Direction) {
        remaining = count
        self.direction = direction
        guard streamCount == 0, let current else { return }
        dataRequest = .sent
        reply(current, .ready(direction))
    }

    /// Ends the current command with its status.
    mutating func finish(_ error: SenseData?) {
        guard let current else { return }
        let content = error.map { UASReply.Content.checkCondition($0) } ?? .good
        if dataRequest == .sent {
            guard replies.contains(where: { $0.isReady }) else {
                // The host has fetched READY and will submit a transfer for this command.
                delayedReply = content
                return
            }
            replies.removeAll { $0.isReady }
        }
        reply(current, content)
        clearCurrent()
    }

    // MARK: - Data

    /// The action for a data transfer.
    enum DataAction: Equatable {
        /// Moves the next `count` bytes of the current command.
        case data(count: Int)
        /// The transfer has no room for the device's next packet, or a short packet before the end.
        case mismatch
        /// Moves nothing: the command of the transfer has ended.
        case discard
    }

    /// Whether a data transfer in this direction, on the right stream, can be processed now.
    func acceptsData(_ direction: Direction) -> Bool {
        self.direction == direction || (direction == .in ? surplusIn : surplusOut) > 0
    }

    /// Whether a data transfer belongs to the current command.
    func isCurrent(_ stream: UInt16) -> Bool { streamCount == 0 || stream == current }

    /// The action for a data transfer of `count` bytes that was accepted.
    mutating func receiveData(_ count: Int, _ direction: Direction) -> DataAction {
        if direction == .in, surplusIn > 0 {
            surplusIn -= 1
            return .discard
        }
        if direction == .out, surplusOut > 0 {
            surplusOut -= 1
            return .discard
        }
        if dataRequest == .sent { dataRequest = .answered }
        if let delayedReply, let current {
            reply(current, delayedReply)
            clearCurrent()
            return .discard
        }
        let isShort = direction == .out && count == 0 || count % maxPacketSize != 0
        return remaining > count && isShort ? .mismatch : .data(count: min(count, remaining))
    }

    /// Records that the host has cancelled a waiting data transfer, perhaps the requested one.
    mutating func dataTransferCancelled() {
        if dataRequest == .sent { dataRequest = .answered }
    }

    /// Advances the data stage. It ends with the last byte.
    mutating func advance(by count: Int) {
        position += count
        remaining -= count
        if remaining == 0 { direction = nil }
    }

    // MARK: - Status pipe

    private mutating func reply(_ tag: UInt16, _ content: UASReply.Content) {
        replies.append(UASReply(tag: tag, content: content))
    }

    /// The stream of a reply; 0 without streams.
    func stream(of reply: UASReply) -> UInt16 { streamCount == 0 ? 0 : reply.tag }

    mutating func removeReply(at index: Int) { replies.remove(at: index) }
}
