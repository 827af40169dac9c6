// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import USB

/// Control requests whose Data Stage is queued in several TDs (``ControlDataStage``).
///
/// A part that fails ends the request, as do Set TR Dequeue Pointer and the next Setup Stage. The
/// request continues after Stop Endpoint.
extension Endpoint {
    /// Executes a part: submits the request to the device, or moves the data of the part.
    mutating func submitPart(
        _ part: consuming TransferDescriptor, _ owner: SlotIdentity, _ bus: SystemBus,
        _ sequence: inout UInt64
    ) {
        if part.stages == .setup {
            request = ControlDataStage(
                SetupPacket(wire: part.entries[0].trb.parameter), bus.leases.budget)
        }
        guard let request else {
            bus.log("control data: the staging memory is exhausted")
            part.outcome = .failed(.dataBufferError, transferred: 0)
            appendInFlight(part, 0)
            return
        }
        guard canReachDevice(owner, bus) else {
            part.outcome = .failed(.usbTransactionError, transferred: 0)
            appendInFlight(part, 0)
            return
        }
        let count = min(part.dataCount, request.remaining)
        let data = request.remainingData.slice(from: 0, count: count)
        part.direction = request.setup.direction
        part.buffer = data
        if part.direction == .out {
            do throws(DMAError) {
                try part.read(into: data, bus.memory)
            } catch {
                bus.log("control data: \(error)")
                part.outcome = .failed(.dataBufferError, transferred: 0)
                appendInFlight(part, 0)
                return
            }
        }
        guard request.involvesDevice(part.stages) else {
            part.length = count
            part.outcome = request.outcome(ofBytes: count)
            appendInFlight(part, 0)
            return
        }
        let buffer = request.buffer
        part.length = buffer.count
        submit(part, 0, .control(request.setup), buffer, owner, &sequence)
    }

    /// Records the device's completion of the request.
    ///
    /// - Returns: the outcome of the part that submitted it.
    mutating func recordPart(
        _ outcome: TransferDescriptor.Outcome, _ part: borrowing TransferDescriptor
    ) -> TransferDescriptor.Outcome {
        guard part.stages == .setup, let remaining = request?.remaining else { return outcome }
        request?.record(outcome)
        return request?.outcome(ofBytes: min(part.dataCount, remaining)) ?? outcome
    }

    /// Advances the request past a part that has completed.
    mutating func finishPart(_ part: borrowing TransferDescriptor, _ transferred: Int) {
        switch part.stages {
        case .setup, .data: request?.advance(transferred)
        case .status: request = nil
        case .all, nil: break
        }
    }
}
