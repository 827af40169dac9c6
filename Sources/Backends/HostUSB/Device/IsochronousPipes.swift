// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import USB

/// The isochronous transfers of an opened device, collected into batches.
///
/// A transfer of the guest is one packet, and a request to usbfs can carry many. The transfers that
/// are submitted in one turn of the loop are started together in batches at the end of the turn. An
/// endpoint's transfers are spread over several batches: the kernel always has a next batch, and
/// the guest gets completions early enough to queue more transfers.
final class IsochronousPipes {
    private struct WaitingTransfer {
        let transfer: Transfer
        var isCancelled = false
    }

    /// One endpoint's transfers, oldest first.
    private struct Pipe {
        var waiting: [WaitingTransfer] = []
        var batches: [IsochronousBatch] = []

        var inFlight: Int { batches.reduce(0) { $0 + $1.transfers.count } }
    }

    /// The number of batches that an endpoint's transfers are spread over.
    private static let batchesPerEndpoint = 4

    private let loop: any EventLoop
    private let submit: (IsochronousBatch, [Transfer]) throws(LibUSBError) -> Void
    private let makeBatch: () throws(LibUSBError) -> IsochronousBatch
    /// The pipes, by ``USB/EndpointAddress/index``.
    private var pipes = [Pipe](repeating: Pipe(), count: EndpointAddress.indexCount)
    private var unused: [IsochronousBatch] = []
    private var flushTimer: Watch?

    /// Called when a transfer has ended.
    var whenEnded: ((Transfer, Transfer.Completion) -> Void)?
    /// Called when the kernel refuses a batch; `bytes` is the size of its data.
    var whenRefused: ((LibUSBError, _ bytes: Int) -> Void)?

    /// - Parameters:
    ///   - makeBatch: makes a batch for libusb.
    ///   - submit: submits a batch to libusb.
    init(
        loop: any EventLoop, makeBatch: @escaping () throws(LibUSBError) -> IsochronousBatch,
        submit: @escaping (IsochronousBatch, [Transfer]) throws(LibUSBError) -> Void
    ) {
        self.loop = loop
        self.makeBatch = makeBatch
        self.submit = submit
    }

    var isIdle: Bool { pipes.allSatisfy { $0.waiting.isEmpty && $0.batches.isEmpty } }

    /// The batches in flight.
    var batches: [IsochronousBatch] { pipes.flatMap(\.batches) }

    func start(_ transfer: Transfer) {
        pipes[transfer.endpoint.index].waiting.append(WaitingTransfer(transfer: transfer))
        scheduleFlush()
    }

    /// Cancels a transfer, with its batch if it is in flight.
    ///
    /// - Returns: `false` if there is no such transfer.
    func cancel(_ id: Transfer.ID) -> Bool {
        for index in pipes.indices {
            let waiting = pipes[index].waiting.firstIndex { $0.transfer.id == id }
            if let waiting {
                // The transfer ends in the flush, not within this call.
                pipes[index].waiting[waiting].isCancelled = true
                scheduleFlush()
                return true
            }
            let batch = pipes[index].batches.first { $0.transfers.contains { $0.id == id } }
            if let batch {
                batch.cancel()
                return true
            }
        }
        return false
    }

    /// Cancels all transfers. Waiting ones end within this call.
    func cancelAll() {
        for index in pipes.indices {
            for batch in pipes[index].batches.reversed() { batch.cancel() }
            for waiting in pipes[index].waiting.indices {
                pipes[index].waiting[waiting].isCancelled = true
            }
        }
        flush()
    }

    /// Frees the unused batches.
    func close() { unused = [] }

    // MARK: - Submission

    private func scheduleFlush() {
        if flushTimer != nil { return }
        flushTimer = loop.schedule(at: loop.now) { [weak self] in self?.flush() }
    }

    private func flush() {
        flushTimer = nil
        var ended: [(Transfer, Transfer.Completion)] = []
        for index in pipes.indices where !pipes[index].waiting.isEmpty {
            ended += flushPipe(index)
        }
        for (transfer, completion) in ended { whenEnded?(transfer, completion) }
    }

    /// Starts an endpoint's waiting transfers.
    ///
    /// - Returns: the cancelled and refused transfers with their completions.
    private func flushPipe(_ index: Int) -> [(Transfer, Transfer.Completion)] {
        var ended = pipes[index].waiting.filter(\.isCancelled).map(\.transfer)
            .map { ($0, $0.completion(.cancelled)) }
        var rest = pipes[index].waiting.filter { !$0.isCancelled }.map(\.transfer)[...]
        pipes[index].waiting = []
        let count = pipes[index].inFlight + rest.count
        let size = min(
            max((count + Self.batchesPerEndpoint - 1) / Self.batchesPerEndpoint, 1),
            HostUSBLimits.packetsPerRequest)
        while !rest.isEmpty {
            let next = Array(rest.prefix(size))
            do throws(LibUSBError) {
                let batch = try unusedBatch()
                do throws(LibUSBError) {
                    try submit(batch, next)
                } catch {
                    unused.append(batch)
                    throw error
                }
                pipes[index].batches.append(batch)
            } catch {
                if error == .noMemory && !pipes[index].batches.isEmpty {
                    // The end of a batch frees memory of the kernel.
                    pipes[index].waiting = rest.map { WaitingTransfer(transfer: $0) }
                    return ended
                }
                whenRefused?(error, next.reduce(0) { $0 + $1.buffer.count })
                let status: Transfer.Status = error == .noDevice ? .disconnected : .failed
                ended += next.map { ($0, $0.completion(status)) }
            }
            rest = rest.dropFirst(next.count)
        }
        return ended
    }

    private func unusedBatch() throws(LibUSBError) -> IsochronousBatch {
        if let batch = unused.popLast() { return batch }
        let batch = try makeBatch()
        batch.whenFinished = { [weak self] batch, completions in
            self?.batchFinished(batch, completions)
        }
        return batch
    }

    // MARK: - Completion

    private func batchFinished(
        _ batch: IsochronousBatch, _ completions: [(Transfer, Transfer.Completion)]
    ) {
        for index in pipes.indices {
            guard let finished = pipes[index].batches.firstIndex(where: { $0 === batch }) else {
                continue
            }
            pipes[index].batches.remove(at: finished)
            if !pipes[index].waiting.isEmpty { scheduleFlush() }
        }
        unused.append(batch)
        for (transfer, completion) in completions { whenEnded?(transfer, completion) }
    }
}
