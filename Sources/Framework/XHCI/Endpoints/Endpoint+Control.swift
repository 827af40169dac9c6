// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// How a control endpoint carries out a request in parts (see ``ControlDataStage``).
///
/// The request is dropped with the first part that fails, by Set TR Dequeue Pointer, and when another
/// begins. Stop Endpoint leaves it where it stands.
extension Endpoint {
    /// Carries out what the ring has of a request: asks the device, or moves a piece of the data.
    mutating func startPart(
        _ part: consuming TransferDescriptor, _ owner: SlotIdentity, _ bus: SystemBus,
        _ sequence: inout UInt64
    ) {
        if part.stages == .setup {
            request = ControlDataStage(
                SetupPacket(wire: part.entries[0].trb.parameter), bus.bounceBudget)
        }
        guard let request else {
            bus.log("control data: there is no memory for them")
            part.outcome = .failed(.dataBufferError, transferred: 0)
            hold(part)
            return
        }
        guard reaches(owner, bus) else {
            part.outcome = .failed(.usbTransactionError, transferred: 0)
            hold(part)
            return
        }
        let count = min(part.dataCount, request.left)
        do throws(DMAError) {
            try part.bounce(count, through: request.piece, request.setup.direction, bus.memory)
        } catch {
            bus.log("control data: \(error)")
            part.outcome = .failed(.dataBufferError, transferred: 0)
            hold(part)
            return
        }
        guard request.concernsDevice(part.stages) else {
            part.length = count
            part.outcome = request.outcome(ofBytes: count)
            hold(part)
            return
        }
        let buffer = request.buffer
        part.length = buffer.count
        submit(part, .control(request.setup), buffer, owner, &sequence)
    }

    /// The device has answered a part: what that means for its piece of the data.
    mutating func recordPart(
        _ outcome: TransferDescriptor.Outcome, _ part: borrowing TransferDescriptor
    ) -> TransferDescriptor.Outcome {
        guard part.stages == .setup, let left = request?.left else { return outcome }
        request?.record(outcome)
        return request?.outcome(ofBytes: min(part.dataCount, left)) ?? outcome
    }

    /// A part has ended well.
    mutating func finishPart(_ part: borrowing TransferDescriptor, _ transferred: Int) {
        switch part.stages {
        case .setup, .data: request?.advance(transferred)
        case .status: request = nil
        case .all, nil: break
        }
    }
}
