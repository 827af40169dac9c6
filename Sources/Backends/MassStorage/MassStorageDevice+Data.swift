// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage
internal import USB

/// The data stage: moves data between the buffers of transfers and the image.
///
/// The event loop moves data straight between image and buffer if that does not wait for a disk.
/// Otherwise the worker moves the data, chunk by chunk through the ``StagingBuffer``. The worker
/// never accesses a transfer's buffer, so a transfer can be cancelled during a job.
extension MassStorageDevice {
    /// The data transfer of the worker's job.
    struct PendingTransfer {
        let transfer: Transfer
        /// The bytes of the data stage in this transfer.
        let count: Int
        /// Of these, the bytes copied to the buffer (IN) or from it (OUT).
        var moved: Int
    }

    /// Cancels the pending transfer, if it has this identifier.
    ///
    /// The job runs to its end. Its IN data is dropped, and read again for the next transfer. Its
    /// OUT data has been copied from the buffer, so it counts as transferred; the status waits for
    /// the job.
    ///
    /// - Returns: whether the pending transfer has this identifier.
    func cancelPending(_ id: Transfer.ID) -> Bool {
        guard let pending, pending.transfer.id == id else { return false }
        self.pending = nil
        switch pending.transfer.direction {
        case .in:
            // A device sends whole packets.
            let delivered = pending.moved - pending.moved % pipes.maxPacketSize
            _ = pipes.advance(by: delivered)
            complete(id, .cancelled, delivered)
        case .out: complete(id, .cancelled, pending.moved)
        }
        return true
    }

    /// Completes the pending transfer of a command that has been aborted.
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
            if pipes.advance(by: count) { finish(nil) }
        case .read(let extent): read(transfer, extent, count: count)
        default: preconditionFailure("an IN data stage without a command that sends data")
        }
    }

    private func read(_ transfer: Transfer, _ extent: Extent, count: Int) {
        var result = IOResult(count: 0, error: nil)
        if supportsNonblockingReads && count <= MassStorageLimits.chunkBytes {
            do throws(Errno) {
                result.count = try image.read(
                    into: transfer.buffer.vectors(count: count),
                    at: extent.byteOffset + UInt64(pipes.position), waiting: false)
            } catch .notSupported {
                supportsNonblockingReads = false
            } catch .badAddress {
                // The transfer's memory is inaccessible, which the worker would not notice.
                result.error = .badAddress
            } catch {
                // The worker reports the error.
            }
        }
        if result.count == count || result.error != nil {
            return completeIn(transfer, extent, result, of: count)
        }
        pending = PendingTransfer(transfer: transfer, count: count, moved: result.count)
        readChunk(of: extent)
    }

    /// Reads the next chunk of the pending transfer on the worker.
    private func readChunk(of extent: Extent) {
        guard let pending else { return }
        let count = min(pending.count - pending.moved, staging.capacity)
        let offset = extent.byteOffset + UInt64(pipes.position + pending.moved)
        runOnWorker { [image, staging] in
            image.readAll(staging.vectors(count: count), at: offset)
        } completion: { [self] result in
            guard var pending = self.pending else { return }
            staging.drain(into: pending.transfer.buffer, at: pending.moved, count: result.count)
            pending.moved += result.count
            if result.error == nil, pending.moved < pending.count, !isChangingMedium {
                self.pending = pending
                return readChunk(of: extent)
            }
            self.pending = nil
            completeIn(
                pending.transfer, extent, IOResult(count: pending.moved, error: result.error),
                of: pending.count)
        }
    }

    /// Completes an IN transfer.
    ///
    /// - Parameter result: an error, or fewer bytes than `count` if the medium has been removed.
    private func completeIn(
        _ transfer: Transfer, _ extent: Extent, _ result: IOResult, of count: Int
    ) {
        if result.error == nil, result.count == count {
            complete(transfer.id, .completed, count)
            if pipes.advance(by: count) { finish(nil) }
            return
        }
        // The data stage ends after the last good block.
        let good = result.count - result.count % blockSize
        _ = pipes.advance(by: good)
        var sense = SenseData.mediumNotPresent
        if let error = result.error {
            let failed = extent.block + UInt64(pipes.position / blockSize)
            logError("reading block \(failed) failed: \(error)")
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
            completeOut(transfer, processed: count, of: count, nil) { [self] in
                let action = unit.execute(block, parameters: list)
                switch action {
                case .operation(let operation): run(operation)
                case .checkCondition(let sense): finish(sense)
                default: finish(nil)
                }
            }
        case .write(let extent, let durably):
            write(transfer, extent, durably: durably, count: count)
        case .compare(let extent):
            pending = PendingTransfer(transfer: transfer, count: count, moved: 0)
            compareChunk(with: extent)
        default: preconditionFailure("an OUT data stage without a command that receives data")
        }
    }

    private func write(_ transfer: Transfer, _ extent: Extent, durably: Bool, count: Int) {
        var result = IOResult(count: 0, error: nil)
        if supportsNonblockingWrites && !durably && count <= MassStorageLimits.chunkBytes {
            do throws(Errno) {
                result.count = try image.write(
                    transfer.buffer.vectors(count: count),
                    at: extent.byteOffset + UInt64(pipes.position), durably: false,
                    waiting: false)
            } catch .notSupported {
                supportsNonblockingWrites = false
            } catch .badAddress {
                // The transfer's memory is inaccessible, which the worker would not notice.
                result.error = .badAddress
            } catch {
                // The worker reports the error.
            }
        }
        if result.count == count || result.error != nil {
            let (processed, sense) = evaluateWrite(from: 0, extent, result)
            return completeOut(transfer, processed: processed, of: count, sense)
        }
        pending = PendingTransfer(transfer: transfer, count: count, moved: result.count)
        writeChunk(to: extent, durably: durably)
    }

    /// Writes the next chunk of the pending transfer on the worker.
    private func writeChunk(to extent: Extent, durably: Bool) {
        runOnWorkerWithChunk(of: extent) { [image] data, offset in
            image.writeAll(data, at: offset, durably: durably)
        } completion: { [self] chunk, result in
            let (processed, sense) = evaluateWrite(
                from: chunk.lowerBound, extent, result)
            continueOut(after: chunk, processed: processed, sense) {
                writeChunk(to: extent, durably: durably)
            }
        }
    }

    /// Evaluates the result of a write and logs its error.
    ///
    /// - Parameter start: the offset in the transfer at which the write began.
    /// - Returns: the bytes of the transfer that have been written, in whole blocks if there was an
    ///   error.
    private func evaluateWrite(
        from start: Int, _ extent: Extent, _ result: IOResult
    ) -> (processed: Int, SenseData?) {
        let count = start + result.count
        guard let error = result.error else { return (count, nil) }
        let good = count - count % blockSize
        let failed = extent.block + UInt64((pipes.position + good) / blockSize)
        logError("writing block \(failed) failed: \(error)")
        return (good, SenseData(writing: error, block: failed))
    }

    /// Compares the next chunk of the pending transfer with the medium on the worker.
    private func compareChunk(with extent: Extent) {
        runOnWorkerWithChunk(of: extent) { [image] data, offset in
            image.compare(data, at: offset)
        } completion: { [self] chunk, sense in
            continueOut(
                after: chunk, processed: sense == nil ? chunk.upperBound : 0, sense
            ) {
                compareChunk(with: extent)
            }
        }
    }

    /// Copies the next chunk of the pending transfer into the staging buffer and runs a job with it
    /// on the worker.
    ///
    /// - Parameters:
    ///   - job: receives the bytes and their offset in the image.
    ///   - completion: runs on the event loop, with the chunk's range in the transfer and the job's
    ///     result.
    private func runOnWorkerWithChunk<Result: Sendable>(
        of extent: Extent, _ job: @escaping @Sendable (IOVectors, UInt64) -> Result,
        completion: @escaping (Range<Int>, Result) -> Void
    ) {
        guard let pending else { return }
        let start = pending.moved
        let count = min(pending.count - start, staging.capacity)
        guard staging.fill(from: pending.transfer.buffer, at: start, count: count) == count else {
            self.pending = nil
            return completeOut(
                pending.transfer, processed: start, of: pending.count, .dataPhaseError)
        }
        self.pending?.moved += count
        let offset = extent.byteOffset + UInt64(pipes.position + start)
        runOnWorker { [staging] in
            job(staging.vectors(count: count), offset)
        } completion: {
            completion(start..<start + count, $0)
        }
    }

    /// Continues with the next chunk of OUT data, or completes the transfer.
    ///
    /// - Parameter processed: the bytes of the transfer that the device has processed.
    private func continueOut(
        after chunk: Range<Int>, processed: Int, _ error: SenseData?, next: () -> Void
    ) {
        guard let pending else {
            // The transfer was cancelled; its bytes up to the end of the chunk count as
            // transferred.
            return completeOut(nil, processed: processed, of: chunk.upperBound, error)
        }
        let hasMore = chunk.upperBound < pending.count
        if hasMore, error == nil, !isChangingMedium { return next() }
        self.pending = nil
        completeOut(
            pending.transfer, processed: processed, of: pending.count,
            error ?? (hasMore ? .mediumNotPresent : nil))
    }

    /// Completes an OUT transfer. Ends the command after an error, or if the data stage is
    /// complete.
    ///
    /// - Parameters:
    ///   - transfer: `nil` if it was cancelled.
    ///   - end: called instead of ``finish(_:)`` after a complete data stage.
    private func completeOut(
        _ transfer: Transfer?, processed: Int, of count: Int, _ error: SenseData?,
        end: (() -> Void)? = nil
    ) {
        let isLast = pipes.advance(by: count, processed: processed)
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
}

extension TransferBuffer {
    /// The first `count` bytes, valid until the caller returns to the event loop.
    fileprivate func vectors(count: Int) -> IOVectors {
        var vectors = IOVectors()
        unsafe forEachSegment { unsafe vectors.append($0) }
        return count == self.count ? vectors : vectors.slice(from: 0, limit: count)
    }
}
