// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// The state of USB Attached SCSI (UAS, INCITS 471), without input or output.
///
/// A host sends as many commands as it likes, each under a tag, without waiting for the ones before.
/// They are carried out one after the other, so that what a host gave in an order happens in it.
/// With streams (SuperSpeed) data and status of a command move on the stream that its tag names;
/// without, the device says on the status pipe whose data move next.
struct UASTransport {
    /// A command that waits for its turn.
    struct Command: Equatable {
        let tag: UInt16
        let unit: UInt8
        let block: CommandBlock
        /// The medium that the host meant, see ``mediumChanged()``.
        let medium: Int
    }

    /// What a request did beside being taken.
    enum Effect {
        case none
        /// The command at work has ended without an answer.
        case abort
        /// The same if there was one, and the logical unit is reset.
        case reset
        /// Nothing can be answered on the stream that it names, as there is none.
        case refuse
    }

    /// What became of READ READY or WRITE READY, which a host answers with one transfer.
    private enum Announcement {
        case none
        case made
        case answered
    }

    let maxPacketSize: Int
    /// 0: the pipes have none.
    var streamCount = 0

    /// The tag of the command at work.
    private(set) var current: UInt16?
    /// The direction in which its data move now.
    private(set) var direction: Direction?
    /// Where in the data stage the next byte belongs.
    private(set) var position = 0
    private var remaining = 0
    private var announcement = Announcement.none
    /// The answer of a command that is done, while the transfer that the host was asked for is missing.
    private var lateAnswer: UASReply.Content?
    /// Transfers that the host was asked for by commands that were aborted.
    private var unusedIn = 0
    private var unusedOut = 0
    private var waiting: Deque<Command> = []
    private(set) var replies: Deque<UASReply> = []
    private var medium = 0

    init(maxPacketSize: Int) { self.maxPacketSize = maxPacketSize }

    /// As after power-on, but for the streams, which belong to the host's controller.
    mutating func reset() {
        leave()
        waiting = []
        replies = []
        (unusedIn, unusedOut) = (0, 0)
    }

    /// Commands that have come are not for the medium that is there from now on.
    mutating func mediumChanged() { medium += 1 }

    /// Whether a command was meant for another medium than the one that is there.
    func isStale(_ command: Command) -> Bool { command.medium != medium }

    // MARK: - Command pipe

    /// Whether there is room for an answer.
    var takesRequests: Bool { replies.count < MassStorageLimits.uasReplies }

    mutating func receive(_ bytes: Span<UInt8>) -> Effect {
        guard let request = UASRequest(bytes), streamCount == 0 || hasStream(request.tag) else {
            return .refuse
        }
        if isKnown(request.tag) {
            let hasEnded = abort { $0 == request.tag }
            reply(request.tag, .response(.overlappedTag))
            return hasEnded ? .abort : .none
        }
        switch request.content {
        case .command(let block, let unit, let isFirst):
            guard waiting.count < MassStorageLimits.uasCommands else {
                reply(request.tag, .taskSetFull)
                return .none
            }
            let command = Command(tag: request.tag, unit: unit, block: block, medium: medium)
            if isFirst { waiting.prepend(command) } else { waiting.append(command) }
            return .none
        case .function(let function, let unit, let tag):
            guard unit == 0 || function == .nexusReset else {
                reply(request.tag, .response(.incorrectLogicalUnit))
                return .none
            }
            let (response, effect) = carryOut(function, of: tag)
            reply(request.tag, .response(response))
            return effect
        case .invalid:
            reply(request.tag, .response(.invalidUnit))
            return .none
        }
    }

    private mutating func carryOut(
        _ function: UASFunction?, of tag: UInt16
    ) -> (UASReply.Response, Effect) {
        switch function {
        case .abortTask: return (.complete, abort { $0 == tag } ? .abort : .none)
        case .abortTaskSet, .clearTaskSet: return (.complete, abort { _ in true } ? .abort : .none)
        case .logicalUnitReset, .nexusReset:
            _ = abort { _ in true }
            return (.complete, .reset)
        case .queryTask: return (isKnown(tag) ? .succeeded : .complete, .none)
        case .queryTaskSet:
            return (current != nil || !waiting.isEmpty ? .succeeded : .complete, .none)
        case .clearAutoContingentAllegiance, nil: return (.notSupported, .none)
        }
    }

    private func hasStream(_ tag: UInt16) -> Bool { tag > 0 && Int(tag) <= streamCount }

    /// Whether a command has this tag, if only because the host has not taken its status.
    private func isKnown(_ tag: UInt16) -> Bool {
        current == tag || waiting.contains { $0.tag == tag }
            || replies.contains { $0.tag == tag && $0.isOfCommand }
    }

    /// Forgets commands and what they have to say.
    ///
    /// - Returns: whether the one at work is among them.
    private mutating func abort(where isConcerned: (UInt16) -> Bool) -> Bool {
        waiting.removeAll { isConcerned($0.tag) }
        let isReadyWaiting = replies.contains { $0.isReady }
        replies.removeAll { $0.isOfCommand && isConcerned($0.tag) }
        guard let current, isConcerned(current) else { return false }
        if announcement == .made, !isReadyWaiting {
            if direction == .in { unusedIn += 1 } else { unusedOut += 1 }
        }
        leave()
        return true
    }

    private mutating func leave() {
        current = nil
        direction = nil
        announcement = .none
        lateAnswer = nil
    }

    // MARK: - Commands

    /// Takes the next command, if none is at work.
    mutating func nextCommand() -> Command? {
        guard current == nil, let command = waiting.popFirst() else { return nil }
        current = command.tag
        position = 0
        remaining = 0
        return command
    }

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
        announcement = .made
        reply(current, .ready(direction))
    }

    mutating func finish(_ error: SenseData?) {
        guard let current else { return }
        let answer = error.map { UASReply.Content.check($0) } ?? .good
        if announcement == .made {
            guard replies.contains(where: { $0.isReady }) else {
                // The host has been asked for a transfer and will give it, to this command.
                lateAnswer = answer
                return
            }
            replies.removeAll { $0.isReady }
        }
        reply(current, answer)
        leave()
    }

    // MARK: - Data

    /// What a data transfer is for.
    enum Use: Equatable {
        /// The next bytes of the command at work.
        case data(count: Int)
        /// A packet goes with it that has no room, or that is short before the end.
        case mismatch
        /// Its command has ended before.
        case none
    }

    /// Whether a data transfer in this direction can be used, if it is of the right stream.
    func takesData(_ direction: Direction) -> Bool {
        self.direction == direction || (direction == .in ? unusedIn : unusedOut) > 0
    }

    /// Whether a data transfer is for the command at work.
    func isCurrent(_ stream: UInt16) -> Bool { streamCount == 0 || stream == current }

    /// Takes a transfer of so many bytes.
    mutating func use(_ count: Int, _ direction: Direction) -> Use {
        if direction == .in, unusedIn > 0 {
            unusedIn -= 1
            return .none
        }
        if direction == .out, unusedOut > 0 {
            unusedOut -= 1
            return .none
        }
        if announcement == .made { announcement = .answered }
        if let lateAnswer, let current {
            reply(current, lateAnswer)
            leave()
            return .none
        }
        let isShort = direction == .out && count == 0 || count % maxPacketSize != 0
        return remaining > count && isShort ? .mismatch : .data(count: min(count, remaining))
    }

    /// The host has taken a transfer back that it was asked for.
    mutating func withdrawn() {
        if announcement == .made { announcement = .answered }
    }

    /// Data moved. After the last the command goes on without a data stage.
    mutating func move(_ count: Int) {
        position += count
        remaining -= count
        if remaining == 0 { direction = nil }
    }

    // MARK: - Status pipe

    private mutating func reply(_ tag: UInt16, _ content: UASReply.Content) {
        replies.append(UASReply(tag: tag, content: content))
    }

    /// The stream on which a reply goes out.
    func stream(of reply: UASReply) -> UInt16 { streamCount == 0 ? 0 : reply.tag }

    mutating func removeReply(at index: Int) { replies.remove(at: index) }
}
