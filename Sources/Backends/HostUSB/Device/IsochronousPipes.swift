// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Platform
internal import USB

/// The isochronous transfers of an opened device, on their way into batches and back.
///
/// One request of usbfs carries many packets, one transfer of the guest's a single one. So what comes
/// in one turn of the loop is put together at its end, and nothing is held back for longer. An
/// endpoint's transfers are spread over several batches: while the kernel works on one, the next are
/// there already, and the guest has the first back in time to send more.
final class IsochronousPipes {
    private struct Waiting {
        let transfer: Transfer
        var isCancelled = false
    }

    /// One endpoint's transfers, oldest first.
    private struct Pipe {
        var waiting: [Waiting] = []
        var batches: [IsochronousBatch] = []

        var inFlight: Int { batches.reduce(0) { $0 + $1.transfers.count } }
    }

    /// Into how many batches an endpoint's transfers are spread.
    private static let batchesAtOnce = 4

    private let loop: any EventLoop
    private let submit: (IsochronousBatch, [Transfer]) throws(LibUSBError) -> Void
    private let makeBatch: () throws(LibUSBError) -> IsochronousBatch
    /// By number, IN sixteen after OUT.
    private var pipes = [Pipe](repeating: Pipe(), count: 32)
    private var idle: [IsochronousBatch] = []
    private var flush: Watch?

    /// Called when a transfer has ended.
    var whenEnded: ((Transfer, Transfer.Completion) -> Void)?
    /// Called when the kernel does not take transfers.
    var whenRefused: ((LibUSBError, _ bytes: Int) -> Void)?

    /// The two functions are libusb's part, which tests play themselves.
    init(
        loop: any EventLoop, makeBatch: @escaping () throws(LibUSBError) -> IsochronousBatch,
        submit: @escaping (IsochronousBatch, [Transfer]) throws(LibUSBError) -> Void
    ) {
        self.loop = loop
        self.makeBatch = makeBatch
        self.submit = submit
    }

    var isIdle: Bool { pipes.allSatisfy { $0.waiting.isEmpty && $0.batches.isEmpty } }

    /// What the kernel has.
    var batches: [IsochronousBatch] { pipes.flatMap(\.batches) }

    func start(_ transfer: Transfer) {
        pipes[place(of: transfer.endpoint)].waiting.append(Waiting(transfer: transfer))
        scheduleFlush()
    }

    /// Asks for an early end.
    ///
    /// - Returns: false if the transfer is not here.
    func cancel(_ id: Transfer.ID) -> Bool {
        for place in pipes.indices {
            if let index = pipes[place].waiting.firstIndex(where: { $0.transfer.id == id }) {
                // It ends in the next turn: whoever cancels is not called back meanwhile.
                pipes[place].waiting[index].isCancelled = true
                scheduleFlush()
                return true
            }
            let batch = pipes[place].batches.first { $0.transfers.contains { $0.id == id } }
            if let batch {
                batch.cancel()
                return true
            }
        }
        return false
    }

    /// Asks for the end of everything, without another turn of the loop.
    func cancelAll() {
        for place in pipes.indices {
            for batch in pipes[place].batches.reversed() { batch.cancel() }
            for index in pipes[place].waiting.indices {
                pipes[place].waiting[index].isCancelled = true
            }
        }
        flushAll()
    }

    /// Forgets the batches that are kept for later.
    func close() { idle = [] }

    private func place(of endpoint: EndpointAddress) -> Int {
        Int(endpoint.number) + (endpoint.direction == .in ? 16 : 0)
    }

    // MARK: - There

    private func scheduleFlush() {
        if flush != nil { return }
        flush = loop.schedule(at: loop.now) { [weak self] in self?.flushAll() }
    }

    private func flushAll() {
        flush = nil
        var ended: [(Transfer, Transfer.Completion)] = []
        for place in pipes.indices where !pipes[place].waiting.isEmpty {
            ended += flushPipe(place)
        }
        for (transfer, completion) in ended { whenEnded?(transfer, completion) }
    }

    /// Starts what waits for one endpoint.
    ///
    /// - Returns: what has ended instead.
    private func flushPipe(_ place: Int) -> [(Transfer, Transfer.Completion)] {
        var ended = pipes[place].waiting.filter(\.isCancelled).map(\.transfer)
            .map { ($0, $0.completion(.cancelled)) }
        var rest = pipes[place].waiting.filter { !$0.isCancelled }.map(\.transfer)[...]
        pipes[place].waiting = []
        let all = pipes[place].inFlight + rest.count
        let size = min(
            max((all + Self.batchesAtOnce - 1) / Self.batchesAtOnce, 1),
            HostUSBLimits.packetsPerRequest)
        while !rest.isEmpty {
            let next = Array(rest.prefix(size))
            do throws(LibUSBError) {
                let batch = try freeBatch()
                do throws(LibUSBError) {
                    try submit(batch, next)
                } catch {
                    idle.append(batch)
                    throw error
                }
                pipes[place].batches.append(batch)
            } catch {
                if error == .noMemory && !pipes[place].batches.isEmpty {
                    // The end of a batch gives some back.
                    pipes[place].waiting = rest.map { Waiting(transfer: $0) }
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

    private func freeBatch() throws(LibUSBError) -> IsochronousBatch {
        if let batch = idle.popLast() { return batch }
        let batch = try makeBatch()
        batch.whenFinished = { [weak self] batch, answers in self?.finished(batch, answers) }
        return batch
    }

    // MARK: - And back

    private func finished(
        _ batch: IsochronousBatch, _ answers: [(Transfer, Transfer.Completion)]
    ) {
        for place in pipes.indices {
            guard let index = pipes[place].batches.firstIndex(where: { $0 === batch }) else {
                continue
            }
            pipes[place].batches.remove(at: index)
            if !pipes[place].waiting.isEmpty { scheduleFlush() }
        }
        idle.append(batch)
        for (transfer, completion) in answers { whenEnded?(transfer, completion) }
    }
}
