// SPDX-License-Identifier: Apache-2.0

internal import DMA
internal import DequeModule
internal import USB

/// Commands about endpoints (xHCI 4.6.8 to 4.6.10).
extension Controller {
    func resetEndpoint(_ command: CommandTRB) -> CommandResult {
        find(command) { endpoint in
            guard endpoint.state == .halted else { return .contextStateError }
            if !command.transferStatePreserve {
                device(of: endpoint)?.resetEndpoint(endpoint.address)
                endpoint.leftover = nil
            }
            setState(.stopped, of: endpoint)
            return .success
        }
    }

    /// By now the device has given back what it had, or time is up.
    func stopEndpoint(_ command: CommandTRB) -> CommandResult {
        find(command) { endpoint in
            guard endpoint.state == .running else { return .contextStateError }
            while let first = endpoint.inFlight.popFirst() {
                endpoint.bytesInFlight -= first.descriptor.length
                switch first.outcome {
                case .ended(.cancelled, let moved):
                    stop(endpoint, in: first, moved: moved)
                    return .success
                case nil:
                    endpoint.abandoned.append(first.id)
                    stop(endpoint, in: first, moved: 0)
                    return .success
                case .some(let outcome):
                    // It was over before the stop.
                    finish(first, outcome, on: endpoint)
                    // It failed: the endpoint is halted, and cannot be stopped any more.
                    guard endpoint.state == .running else { return .contextStateError }
                }
            }
            setState(.stopped, of: endpoint)
            return .success
        }
    }

    private func stop(_ endpoint: Endpoint, in transfer: TransferInFlight, moved: Int) {
        let limit = transfer.descriptor.length - transfer.skipped
        let bytes = max(0, min(moved, limit))
        abandonTransfers(of: endpoint)
        _ = writeBack(transfer, bytes)
        var report = TransferReport(transfer, slot: endpoint.slot, endpoint: endpoint.dci)
        let place = report.stop(moved: bytes)
        let entry = transfer.descriptor.entries[place.entry]
        if transfer.descriptor.isControl {
            // Stages cannot be taken up in their midst: the device forgot the request.
            endpoint.position = transfer.descriptor.start
            endpoint.leftover = nil
        } else {
            endpoint.position = entry.position
            endpoint.leftover = Endpoint.Leftover(
                address: entry.address, bytes: place.bytes, accumulated: report.accumulated)
        }
        setState(.stopped, of: endpoint)
        post(report)
    }

    func setTRDequeuePointer(_ command: CommandTRB) -> CommandResult {
        find(command) { endpoint in
            guard endpoint.state == .stopped || endpoint.state == .error else {
                return .contextStateError
            }
            endpoint.leftover = nil
            endpoint.position = RingPosition(
                pointer: command.dequeuePointer | (command.dequeueCycleState ? 1 : 0))
            setState(.stopped, of: endpoint)
            return .success
        }
    }

    private func find(
        _ command: CommandTRB, _ body: (Endpoint) -> CompletionCode
    ) -> CommandResult {
        guard let slot = slots[bounded: command.slot] else { return missing(command) }
        guard command.endpoint > 0 else { return CommandResult(.trbError) }
        guard let endpoint = slot.endpoints[bounded: command.endpoint] else {
            return CommandResult(.endpointNotEnabled)
        }
        return CommandResult(body(endpoint))
    }
}
