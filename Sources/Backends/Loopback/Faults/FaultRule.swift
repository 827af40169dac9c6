// SPDX-License-Identifier: Apache-2.0

internal import USB

/// A rule of a fault script: a fault, its endpoint or descriptor, and its conditions.
struct FaultRule: Equatable {
    /// The endpoint or the descriptor that the rule applies to.
    enum Target: Equatable {
        case pipe(Pipe)
        case descriptor(DescriptorFault.Subject)
    }

    /// The fault.
    enum Action: Equatable {
        /// STALL; the endpoint is halted.
        case stall
        /// NAK until a condition holds. Transfers behind this one wait too.
        case nak(until: NAKEnd)
        /// A short packet: an IN transfer has at most this number of bytes.
        case short(Int)
        /// The device sends more data than the transfer has room for.
        case babble
        /// A transaction error.
        case error
        /// The byte at this offset is inverted.
        case corrupt(Int)
        /// The device disconnects. It is attached again after a time, or never.
        case disconnect(reconnect: Duration?)
        case descriptor(DescriptorFault)
    }

    /// The end of a NAK fault.
    enum NAKEnd: Equatable {
        case never
        case after(Duration)
        /// NAK until this number of further transfers waits.
        case queued(Int)
    }

    var target: Target
    var action: Action
    /// The only `bRequest` of control transfers that the rule applies to; `nil`: all.
    var request: UInt8?
    /// The number of transfers that pass before the first fault.
    var after = 0
    /// The number of bytes that the endpoint moves before the first fault.
    var afterBytes: UInt64 = 0
    /// The probability of the fault, for each transfer that the rule applies to.
    var probability = 1.0
    /// The seed of the random numbers.
    var seed: UInt64 = 0
    /// The number of faults; `nil`: no limit.
    var times: Int? = 1
    /// The rule as the operator wrote it.
    var text: String

    /// Whether the fault is possible for a transfer of the rule's endpoint.
    func applies(to transfer: Transfer) -> Bool {
        guard case .control(let setup) = transfer.kind else { return true }
        if let request, request != setup.request { return false }
        switch action {
        case .short, .babble: return setup.direction == .in && transfer.buffer.count > 0
        case .corrupt: return transfer.buffer.count > 0
        default: return true
        }
    }

    /// The effect that the host sees, for the log.
    var effect: String {
        switch action {
        case .stall: "a stall (Linux: -EPIPE)"
        case .nak(until: .never): "no answer until it cancels the transfer"
        case .nak(until: .after(let time)): "an answer \(time.milliseconds) ms late"
        case .nak(until: .queued(let count)): "no answer until \(count) more transfers wait"
        case .short(let bytes): "\(bytes) bytes (Linux: -EREMOTEIO with URB_SHORT_NOT_OK)"
        case .babble: "too much data (Linux: -EOVERFLOW)"
        case .error: "a transaction error (Linux: -EPROTO, on bulk endpoints after 4 retries)"
        case .corrupt(let offset): "byte \(offset) inverted"
        case .disconnect(nil): "a disconnect (Linux: -EPROTO, then -ESHUTDOWN)"
        case .disconnect(let time?):
            "a disconnect (Linux: -EPROTO, then -ESHUTDOWN), and a new device "
                + "\(time.milliseconds) ms later"
        case .descriptor(let fault): fault.effect
        }
    }
}

extension Duration {
    /// Whole milliseconds.
    var milliseconds: Int64 {
        components.seconds * 1000 + components.attoseconds / 1_000_000_000_000_000
    }
}
