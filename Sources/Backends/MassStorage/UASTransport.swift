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
    }

    /// What a request did beside being taken.
    enum Effect {
        case none
        /// The command at work may have ended without an answer.
        case abort
        /// The same, and the logical unit is as after power-on.
        case reset
        /// Nothing can be answered on the stream that it names, as there is none.
        case refuse
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
    private var waiting: Deque<Command> = []
    private(set) var replies: Deque<UASReply> = []

    init(maxPacketSize: Int) { self.maxPacketSize = maxPacketSize }

    /// As after power-on, but for the streams, which belong to the host's controller.
    mutating func reset() {
        abortAll()
        replies = []
    }

    // MARK: - Command pipe

    var takesRequests: Bool { waiting.count + replies.count < Limits.uasCommands }

    mutating func receive(_ bytes: Span<UInt8>) -> Effect {
        guard let request = UASRequest(bytes), streamCount == 0 || hasStream(request.tag) else {
            return .refuse
        }
        switch request.content {
        case .command(let block, let unit, let isFirst):
            if isKnown(request.tag) {
                abort(request.tag)
                reply(request.tag, .response(.overlappedTag))
                return .abort
            }
            let command = Command(tag: request.tag, unit: unit, block: block)
            if isFirst { waiting.prepend(command) } else { waiting.append(command) }
            return .none
        case .function(let function, let unit, let tag):
            guard unit == 0 else {
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
        case .abortTask:
            abort(tag)
            return (.complete, .abort)
        case .abortTaskSet, .clearTaskSet:
            abortAll()
            return (.complete, .abort)
        case .logicalUnitReset, .nexusReset:
            abortAll()
            return (.complete, .reset)
        case .queryTask: return (isKnown(tag) ? .succeeded : .complete, .none)
        case .queryTaskSet:
            return (current != nil || !waiting.isEmpty ? .succeeded : .complete, .none)
        case .clearAutoContingentAllegiance, nil: return (.notSupported, .none)
        }
    }

    private func hasStream(_ tag: UInt16) -> Bool { tag > 0 && Int(tag) <= streamCount }

    private func isKnown(_ tag: UInt16) -> Bool {
        current == tag || waiting.contains { $0.tag == tag }
    }

    private mutating func abort(_ tag: UInt16) {
        waiting.removeAll { $0.tag == tag }
        if current == tag { leave() }
    }

    private mutating func abortAll() {
        waiting = []
        leave()
    }

    private mutating func leave() {
        current = nil
        direction = nil
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
        if streamCount == 0, let current { reply(current, .ready(direction)) }
    }

    mutating func finish(_ error: SenseData?) {
        guard let current else { return }
        reply(current, error.map { .check($0) } ?? .good)
        leave()
    }

    // MARK: - Data

    /// Whether a data transfer is for the command at work.
    func isCurrent(_ stream: UInt16) -> Bool { streamCount == 0 || stream == current }

    /// How much of a transfer the command uses; `nil` if a packet goes with it that has no room, or
    /// that is short before the end.
    func use(of count: Int) -> Int? {
        if remaining > count && count % maxPacketSize != 0 { return nil }
        return min(count, remaining)
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

    /// Takes a reply, to be sent on a status transfer of its stream.
    mutating func takeReply(at index: Int) -> UASReply { replies.remove(at: index) }

    /// Whether a status transfer is for a reply.
    func isFor(_ reply: UASReply, _ stream: UInt16) -> Bool {
        streamCount == 0 || stream == reply.tag
    }
}
