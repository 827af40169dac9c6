// SPDX-License-Identifier: Apache-2.0

public import USB

/// A device whose test decides how each transfer completes, and which records every transfer.
///
/// It has no clock: a test completes the transfers in ``pending`` when it wants to.
public final class TestDevice: USBDevice {
    /// The way in which the device completes a transfer.
    public enum Answer: Sendable {
        /// Completes an IN transfer with these bytes, as many as fit.
        case give([UInt8])
        /// Completes an OUT transfer in full, or a transfer without data.
        case accept
        /// Completes with a status and a number of transferred bytes; moves no data.
        case end(Transfer.Status, transferred: Int)
        /// Keeps the transfer in ``pending`` until the test completes it.
        case hold
    }

    /// A submitted transfer.
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
    /// Decides how each transfer completes. With `nil`, a control request gets a plausible answer
    /// and any other transfer is kept.
    public var onTransfer: (Transfer) -> Answer?
    public private(set) var port: (any USBPort)?
    /// Every transfer that was submitted.
    public private(set) var records: [Record] = []
    /// Transfers that have not completed, oldest first.
    public private(set) var pending: [Transfer] = []
    /// Transfers that the controller has cancelled, in order.
    public private(set) var cancelled: [Transfer.ID] = []
    public private(set) var resetCount = 0
    public private(set) var resetEndpoints: [EndpointAddress] = []
    /// The stream count that the controller last set for each endpoint.
    public private(set) var streams: [EndpointAddress: Int] = [:]
    /// The stream of the last bulk transfer.
    public private(set) var lastStream: UInt16?
    public private(set) var suspensions: [Bool] = []
    public private(set) var detachCount = 0
    /// Whether ``cancel(_:)`` and ``reset()`` complete transfers at once; if not, the test does.
    public var cancelsAtOnce = true
    /// Whether cancelling one transfer completes all others, too, as a host's kernel does.
    public var cancelsAllAtOnce = false
    public var keepsIsochronousTime = false
    /// The transferred bytes that a cancelled transfer reports.
    public var transferredWhenCancelled = 0

    public init(
        _ speed: USBSpeed = .high, onTransfer: @escaping (Transfer) -> Answer? = { _ in nil }
    ) {
        self.speed = speed
        self.onTransfer = onTransfer
    }

    /// A minimal device descriptor.
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
        complete(transfer, with: onTransfer(transfer) ?? defaultAnswer(setup))
    }

    public func cancel(_ id: Transfer.ID) {
        cancelled.append(id)
        guard cancelsAtOnce, let index = pending.firstIndex(where: { $0.id == id }) else { return }
        let transfer = pending.remove(at: index)
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

    private func defaultAnswer(_ setup: SetupPacket?) -> Answer {
        guard let setup else { return .hold }
        if setup.requestType == 0x80, setup.request == 6, setup.value >> 8 == 1 {
            return .give(deviceDescriptor)
        }
        return setup.direction == .in ? .give([]) : .accept
    }

    /// Completes a transfer.
    public func complete(_ transfer: Transfer, with answer: Answer) {
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

    /// Completes the oldest pending transfer.
    ///
    /// - Returns: `false` if none is pending.
    @discardableResult
    public func answerNext(_ answer: Answer) -> Bool {
        guard !pending.isEmpty else { return false }
        complete(pending.removeFirst(), with: answer)
        return true
    }

    /// Sends the port a completion, whether a transfer is pending or not.
    public func complete(_ completion: Transfer.Completion) { port?.complete(completion) }

    public func disconnect() { port?.disconnect() }

    public func wake() { port?.wake() }
}
