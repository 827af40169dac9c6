// SPDX-License-Identifier: Apache-2.0

internal import USB

/// One thing that the device does wrong, where, and when.
struct FaultRule: Equatable {
    /// Where it happens.
    enum Target: Equatable {
        case pipe(Pipe)
        case descriptor(DescriptorFault.Subject)
    }

    /// What happens there.
    enum Action: Equatable {
        case stall
        /// The transfer waits until then; those behind it wait too.
        case hold(Hold)
        /// An IN transfer has no more than this.
        case short(Int)
        case babble
        case error
        /// A byte arrives inverted, at this offset.
        case corrupt(Int)
        /// The device unplugs itself, and comes back after this time or never.
        case disconnect(reconnect: Duration?)
        case descriptor(DescriptorFault)
    }

    /// How long a transfer is not answered.
    enum Hold: Equatable {
        case forever
        case time(Duration)
        /// Until as many more transfers wait behind it.
        case queued(Int)
    }

    var target: Target
    var action: Action
    /// Control transfers with this `bRequest` only.
    var request: UInt8?
    /// Transfers that pass before.
    var after = 0
    /// Bytes that the endpoint moves before.
    var afterBytes: UInt64 = 0
    /// How likely it is, each time that it could happen.
    var probability = 1.0
    var seed: UInt64 = 0
    /// How often it happens; `nil`: always.
    var times: Int? = 1
    /// As the operator wrote it.
    var text: String

    /// Whether it could happen to this transfer at all.
    func concerns(_ transfer: Transfer) -> Bool {
        guard case .control(let setup) = transfer.kind else { return true }
        if let request, request != setup.request { return false }
        switch action {
        case .short, .babble: return setup.direction == .in && transfer.buffer.count > 0
        case .corrupt: return transfer.buffer.count > 0
        default: return true
        }
    }

    /// What the host should see of it.
    var effect: String {
        switch action {
        case .stall: "a stall (Linux: -EPIPE)"
        case .hold(.forever): "no answer until it gives up"
        case .hold(.time(let time)): "an answer \(time.milliseconds) ms late"
        case .hold(.queued(let count)): "no answer until \(count) more transfers wait"
        case .short(let bytes): "\(bytes) bytes (Linux: -EREMOTEIO if that is not allowed)"
        case .babble: "too much data (Linux: -EOVERFLOW)"
        case .error: "a transaction error (Linux: -EPROTO, for bulk after 4 tries more)"
        case .corrupt(let offset): "byte \(offset) inverted"
        case .disconnect(nil): "an unplug (Linux: -EPROTO, then -ESHUTDOWN)"
        case .disconnect(let time?):
            "an unplug (Linux: -EPROTO, then -ESHUTDOWN), and a new device "
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
