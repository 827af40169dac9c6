// SPDX-License-Identifier: Apache-2.0

public import USB

/// A device that does with each transfer what the test says, and remembers what it was asked.
///
/// It keeps no clock; what is to happen later is done by the test through ``pending``.
public final class TestDevice: USBDevice {
    /// What to do with a transfer.
    public enum Answer: Sendable {
        /// Give these bytes to an IN transfer, as many as fit, and complete it.
        case give([UInt8])
        /// Take all bytes of an OUT transfer, or complete one without data.
        case accept
        /// Complete with a status after moving so many bytes (of `give`, or taken).
        case end(Transfer.Status, transferred: Int)
        /// Leave it until the test completes it.
        case hold
    }

    /// What was asked and what came of it.
    public struct Record: Sendable {
        public let id: Transfer.ID
        public let endpoint: EndpointAddress
        public let direction: Direction
        public let setup: SetupPacket?
        public let count: Int
        /// The bytes of an OUT transfer at the time of its submission.
        public let bytes: [UInt8]
    }

    public let speed: USBSpeed
    public var summary: String { "test device" }
    /// Decides on every transfer; standard requests on endpoint 0 that it answers `nil` to get a
    /// usual answer.
    public var onTransfer: (Transfer) -> Answer?
    public private(set) var port: (any USBPort)?
    /// Every transfer since the device was made.
    public private(set) var records: [Record] = []
    /// Transfers that have no answer yet, oldest first.
    public private(set) var pending: [Transfer] = []
    /// Transfers that the controller gave up, in order.
    public private(set) var cancelled: [Transfer.ID] = []
    public private(set) var resetCount = 0
    public private(set) var resetEndpoints: [EndpointAddress] = []
    /// The streams of each endpoint, as the controller last said.
    public private(set) var streams: [EndpointAddress: Int] = [:]
    /// The stream of the last bulk transfer.
    public private(set) var lastStream: UInt16?
    public private(set) var suspensions: [Bool] = []
    public private(set) var detachCount = 0
    /// Whether ``cancel(_:)`` and ``reset()`` complete transfers at once, or leave that to the test.
    public var cancelsAtOnce = true
    /// Whether the end of one cancelled transfer brings that of all others, as a host's kernel does.
    public var cancelsAllAtOnce = false
    public var keepsIsochronousTime = false
    /// Bytes that a cancelled transfer is said to have moved.
    public var transferredWhenCancelled = 0

    public init(
        _ speed: USBSpeed = .high, onTransfer: @escaping (Transfer) -> Answer? = { _ in nil }
    ) {
        self.speed = speed
        self.onTransfer = onTransfer
    }

    /// Eighteen bytes that pass for a device descriptor.
    public var deviceDescriptor: [UInt8] {
        [
            18, 1, speed.isSuperSpeed ? 0 : 0x10, speed.isSuperSpeed ? 3 : 2, 0, 0, 0,
            speed.isSuperSpeed ? 9 : speed == .high ? 64 : 8, 0x09, 0x12, 1, 0, 0, 1, 0, 0, 0, 1,
        ]
    }

    // MARK: - USBDevice

    public func attach(to port: any USBPort) { self.port = port }

    public func detached() {
        detachCount += 1
        pending = []
        port = nil
    }

    public func submit(_ transfer: Transfer) {
        if case .bulk(let stream) = transfer.kind { lastStream = stream }
        var setup: SetupPacket?
        if case .control(let packet) = transfer.kind { setup = packet }
        records.append(
            Record(
                id: transfer.id, endpoint: transfer.endpoint, direction: transfer.direction,
                setup: setup, count: transfer.buffer.count,
                bytes: transfer.direction == .out ? transfer.buffer.bytes() : []))
        perform(onTransfer(transfer) ?? usualAnswer(setup), transfer)
    }

    public func cancel(_ id: Transfer.ID) {
        cancelled.append(id)
        guard cancelsAtOnce, let place = pending.firstIndex(where: { $0.id == id }) else { return }
        let transfer = pending.remove(at: place)
        port?.complete(
            transfer.completion(
                .cancelled, transferred: min(transferredWhenCancelled, transfer.buffer.count)))
        if cancelsAllAtOnce { endAll() }
    }

    private func endAll() {
        let all = pending
        pending = []
        for transfer in all { port?.complete(transfer.completion(.cancelled)) }
    }

    public func reset() {
        resetCount += 1
        if cancelsAtOnce { endAll() }
    }

    public func resetEndpoint(_ endpoint: EndpointAddress) { resetEndpoints.append(endpoint) }

    public func setStreams(_ count: Int, for endpoint: EndpointAddress) {
        streams[endpoint] = count
    }

    public func setSuspended(_ suspended: Bool) { suspensions.append(suspended) }

    // MARK: - Answers

    private func usualAnswer(_ setup: SetupPacket?) -> Answer {
        guard let setup else { return .hold }
        if setup.requestType == 0x80, setup.request == 6, setup.value >> 8 == 1 {
            return .give(deviceDescriptor)
        }
        return setup.direction == .in ? .give([]) : .accept
    }

    /// Carries out an answer for a transfer.
    public func perform(_ answer: Answer, _ transfer: Transfer) {
        switch answer {
        case .give(let bytes):
            let count = transfer.buffer.copy(from: bytes)
            port?.complete(transfer.completion(.completed, transferred: count))
        case .accept:
            let count = transfer.direction == .out ? transfer.buffer.count : 0
            port?.complete(transfer.completion(.completed, transferred: count))
        case .end(let status, let transferred):
            port?.complete(transfer.completion(status, transferred: transferred))
        case .hold:
            pending.append(transfer)
        }
    }

    /// Answers the oldest transfer that waits.
    ///
    /// - Returns: whether there was one.
    @discardableResult
    public func answerNext(_ answer: Answer) -> Bool {
        guard !pending.isEmpty else { return false }
        perform(answer, pending.removeFirst())
        return true
    }

    /// Says something to the port that it has no reason to say.
    public func complete(_ completion: Transfer.Completion) { port?.complete(completion) }

    public func disconnect() { port?.disconnect() }

    public func wake() { port?.wake() }
}
