// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage
internal import USB

/// The data stage: bytes between the transfers' buffers and the image.
///
/// The event loop reads and writes the image straight from and to a buffer when that need not wait for
/// a disk. Otherwise the worker does, chunk by chunk through the ``StagingBuffer``: it never accesses
/// a transfer's buffer, so a transfer can be cancelled while it is at work.
extension StorageDevice {
    /// A data transfer for which the worker reads, writes or compares.
    struct PendingTransfer {
        let transfer: Transfer
        /// Bytes of the data stage that the transfer carries.
        let count: Int
        /// Of these, the bytes delivered to the buffer (IN) or copied from it (OUT).
        var moved: Int
    }

    /// Cancels the transfer for which the worker is at work, if it is this one.
    ///
    /// The job runs to its end. IN data of it are dropped and read again for the next transfer. OUT data
    /// of it have been taken, so they count as transferred, and the status waits for the job.
    ///
    /// - Returns: whether it was this one.
    func cancelPending(_ id: Transfer.ID) -> Bool {
        guard let pending, pending.transfer.id == id else { return false }
        self.pending = nil
        switch pending.transfer.direction {
        case .in:
            // Whole packets, as on a bus.
            let delivered = pending.moved - pending.moved % pipes.maxPacketSize
            _ = pipes.move(delivered)
            complete(id, .cancelled, delivered)
        case .out: complete(id, .cancelled, pending.moved)
        }
        return true
    }

    /// Ends the transfer for which the worker is at work, as its command is no more.
    func endPending(_ status: Transfer.Status) {
        guard let transfer = pending?.transfer else { return }
        pending = nil
        complete(transfer.id, status, 0)
    }

    // MARK: - Data to the host

    func sendData(_ transfer: Transfer, count: Int) {
        switch command {
        case .reply(let bytes):
            let start = pipes.position
            transfer.buffer.copy(from: Array(bytes[start..<start + count]))
            complete(transfer.id, .completed, count)
            if pipes.move(count) { finish(nil) }
        case .read(let extent): read(transfer, extent, count: count)
        default: preconditionFailure("data for the host without a command that has them")
        }
    }

    private func read(_ transfer: Transfer, _ extent: Extent, count: Int) {
        var result = IOResult(count: 0, error: nil)
        if canTryReading && count <= MassStorageLimits.bytesAtOnce {
            do throws(Errno) {
                result.count = try image.read(
                    into: transfer.buffer.vectors(count: count),
                    at: extent.byteOffset + UInt64(pipes.position), waiting: false)
            } catch .notSupported {
                canTryReading = false
            } catch .badAddress {
                // The memory of the transfer is at fault, which the worker would not meet.
                result.error = .badAddress
            } catch {
                // The worker meets it again.
            }
        }
        if result.count == count || result.error != nil {
            return sent(transfer, extent, result, of: count)
        }
        pending = PendingTransfer(transfer: transfer, count: count, moved: result.count)
        readChunk(of: extent)
    }

    /// Reads the next bytes of the pending transfer on the worker.
    private func readChunk(of extent: Extent) {
        guard let pending else { return }
        let count = min(pending.count - pending.moved, staging.capacity)
        let offset = extent.byteOffset + UInt64(pipes.position + pending.moved)
        onWorker { [image, staging] in
            image.readAll(staging.vectors(count: count), at: offset)
        } then: { [self] result in
            guard var pending = self.pending else { return }
            staging.drain(into: pending.transfer.buffer, at: pending.moved, count: result.count)
            pending.moved += result.count
            if result.error == nil, pending.moved < pending.count, !isChangingMedium {
                self.pending = pending
                return readChunk(of: extent)
            }
            self.pending = nil
            sent(
                pending.transfer, extent, IOResult(count: pending.moved, error: result.error),
                of: pending.count)
        }
    }

    private func sent(
        _ transfer: Transfer, _ extent: Extent, _ result: IOResult, of count: Int
    ) {
        if result.error == nil, result.count == count {
            complete(transfer.id, .completed, count)
            if pipes.move(count) { finish(nil) }
            return
        }
        // The blocks before the bad one have been sent; then the data stage ends.
        let good = result.count - result.count % blockSize
        _ = pipes.move(good)
        var sense = SenseData.mediumNotPresent
        if let error = result.error {
            let failed = extent.block + UInt64(pipes.position / blockSize)
            tell("reading block \(failed) failed: \(error)")
            sense = SenseData(reading: error, block: failed)
        }
        let endsShort = good % pipes.maxPacketSize != 0
        complete(transfer.id, endsShort ? .completed : pipes.statusOfExcess, good)
        finish(sense)
    }

    // MARK: - Data from the host

    func receiveData(_ transfer: Transfer, count: Int) {
        switch command {
        case .parameters(let block, let list):
            let list = list + transfer.buffer.bytes(count: count)
            command = .parameters(block, list)
            received(transfer, processed: count, of: count, nil) { [self] in
                let action = unit.execute(block, parameters: list)
                switch action {
                case .perform(let job): perform(job)
                case .check(let sense): finish(sense)
                default: finish(nil)
                }
            }
        case .write(let extent, let durably):
            write(transfer, extent, durably: durably, count: count)
        case .compare(let extent):
            pending = PendingTransfer(transfer: transfer, count: count, moved: 0)
            compareChunk(with: extent)
        default: preconditionFailure("data of the host without a command that takes them")
        }
    }

    private func write(_ transfer: Transfer, _ extent: Extent, durably: Bool, count: Int) {
        var result = IOResult(count: 0, error: nil)
        if canTryWriting && !durably && count <= MassStorageLimits.bytesAtOnce {
            do throws(Errno) {
                result.count = try image.write(
                    transfer.buffer.vectors(count: count),
                    at: extent.byteOffset + UInt64(pipes.position), durably: false,
                    waiting: false)
            } catch .notSupported {
                canTryWriting = false
            } catch .badAddress {
                // The memory of the transfer is at fault, which the worker would not meet.
                result.error = .badAddress
            } catch {
                // The worker meets it again.
            }
        }
        if result.count == count || result.error != nil {
            let (processed, sense) = wrote(0, extent, result)
            return received(transfer, processed: processed, of: count, sense)
        }
        pending = PendingTransfer(transfer: transfer, count: count, moved: result.count)
        writeChunk(to: extent, durably: durably)
    }

    /// Writes the next bytes of the pending transfer on the worker.
    private func writeChunk(to extent: Extent, durably: Bool) {
        onWorkerWithChunk(of: extent) { [image] data, offset in
            image.writeAll(data, at: offset, durably: durably)
        } then: { [self] chunk, result in
            let (processed, sense) = wrote(chunk.lowerBound, extent, result)
            received(chunk, processed: processed, sense) {
                writeChunk(to: extent, durably: durably)
            }
        }
    }

    /// - Parameter start: the bytes of the transfer that were written before.
    /// - Returns: the bytes of the transfer that are on the medium, and the error if there was one.
    private func wrote(_ start: Int, _ extent: Extent, _ result: IOResult) -> (Int, SenseData?) {
        let count = start + result.count
        guard let error = result.error else { return (count, nil) }
        let good = count - count % blockSize
        let failed = extent.block + UInt64((pipes.position + good) / blockSize)
        tell("writing block \(failed) failed: \(error)")
        return (good, SenseData(writing: error, block: failed))
    }

    /// Compares the next bytes of the pending transfer on the worker.
    private func compareChunk(with extent: Extent) {
        onWorkerWithChunk(of: extent) { [image] data, offset in
            image.compare(data, at: offset)
        } then: { [self] chunk, sense in
            received(chunk, processed: sense == nil ? chunk.upperBound : 0, sense) {
                compareChunk(with: extent)
            }
        }
    }

    /// Copies the next chunk of the pending transfer into the staging buffer and runs a job with it.
    ///
    /// - Parameters:
    ///   - job: runs on the worker, with the bytes and their offset in the image.
    ///   - completion: runs on the event loop, with the range of the transfer and the job's result.
    private func onWorkerWithChunk<Result: Sendable>(
        of extent: Extent, _ job: @escaping @Sendable (IOVectors, UInt64) -> Result,
        then completion: @escaping (Range<Int>, Result) -> Void
    ) {
        guard let pending else { return }
        let start = pending.moved
        let count = min(pending.count - start, staging.capacity)
        guard staging.fill(from: pending.transfer.buffer, at: start, count: count) == count else {
            self.pending = nil
            return received(
                pending.transfer, processed: start, of: pending.count, .dataPhaseError)
        }
        self.pending?.moved += count
        let offset = extent.byteOffset + UInt64(pipes.position + start)
        onWorker { [staging] in
            job(staging.vectors(count: count), offset)
        } then: {
            completion(start..<start + count, $0)
        }
    }

    /// A chunk of OUT data has been processed: goes on with the next, or ends the transfer.
    ///
    /// - Parameter processed: the bytes of the transfer that count.
    private func received(
        _ chunk: Range<Int>, processed: Int, _ error: SenseData?, next: () -> Void
    ) {
        guard let pending else {
            // It was cancelled, with what had been taken of it.
            return received(nil, processed: processed, of: chunk.upperBound, error)
        }
        let hasMore = chunk.upperBound < pending.count
        if hasMore, error == nil, !isChangingMedium { return next() }
        self.pending = nil
        received(
            pending.transfer, processed: processed, of: pending.count,
            error ?? (hasMore ? .mediumNotPresent : nil))
    }

    /// The data of a transfer have been processed: goes on with the next, or ends the data stage.
    ///
    /// - Parameters:
    ///   - transfer: `nil` if it was cancelled.
    ///   - end: what follows the last data; by default the command is done.
    private func received(
        _ transfer: Transfer?, processed: Int, of count: Int, _ error: SenseData?,
        end: (() -> Void)? = nil
    ) {
        let isLast = pipes.move(count, processed: processed)
        if let transfer {
            let isTooLong = transfer.buffer.count > count
            complete(transfer.id, isTooLong ? pipes.statusOfExcess : .completed, count)
        }
        if let error {
            finish(error)
        } else if isLast {
            if let end { end() } else { finish(nil) }
        }
    }

    func tell(_ error: String) {
        logger.log(level: hasToldOfErrors ? .debug : .warning, "\(summary): \(error)")
        hasToldOfErrors = true
    }
}

extension TransferBuffer {
    /// The first `count` bytes as the kernel takes them. Good for as long as the buffer is held.
    fileprivate func vectors(count: Int) -> IOVectors {
        var vectors = IOVectors()
        unsafe forEachSegment { unsafe vectors.append($0) }
        return count == self.count ? vectors : vectors.slice(from: 0, limit: count)
    }
}
