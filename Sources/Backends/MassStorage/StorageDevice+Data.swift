// SPDX-License-Identifier: Apache-2.0

internal import Logging
internal import Platform
internal import SystemPackage
internal import USB

/// The data stage: bytes between the guest's memory and the image.
extension StorageDevice {
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
        let pieces = transfer.buffer.pieces(count: count)
        let offset = extent.byteOffset + UInt64(pipes.position)
        var done = 0
        if canTryReading && count <= MassStorageLimits.bytesAtOnce {
            do throws(Errno) {
                done = try image.read(into: pieces, at: offset, waiting: false)
            } catch .notSupported {
                canTryReading = false
            } catch {
                // Whatever it is, the worker meets it again.
            }
        }
        if done == count {
            sent(transfer, extent, IOResult(count: done, error: nil), of: count)
            return
        }
        let image = image
        onWorker(for: transfer) { [done] in
            image.readAll(pieces, at: offset, done: done)
        } then: { [self] movement in
            sent(transfer, extent, movement, of: count)
        }
    }

    private func sent(
        _ transfer: Transfer, _ extent: Extent, _ movement: IOResult, of count: Int
    ) {
        guard let error = movement.error else {
            complete(transfer.id, .completed, count)
            if pipes.move(count) { finish(nil) }
            return
        }
        // The blocks before the bad one have been sent; then the data stage ends.
        let good = movement.count - movement.count % blockSize
        _ = pipes.move(good)
        let failed = extent.block + UInt64(pipes.position / blockSize)
        tell("reading block \(failed) failed: \(error)")
        let endsShort = good % pipes.maxPacketSize != 0
        complete(transfer.id, endsShort ? .completed : pipes.statusOfExcess, good)
        finish(SenseData(reading: error, block: failed))
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
        case .compare(let extent): compare(transfer, extent, count: count)
        default: preconditionFailure("data of the host without a command that takes them")
        }
    }

    private func write(_ transfer: Transfer, _ extent: Extent, durably: Bool, count: Int) {
        let pieces = transfer.buffer.pieces(count: count)
        let offset = extent.byteOffset + UInt64(pipes.position)
        var done = 0
        if canTryWriting && !durably && count <= MassStorageLimits.bytesAtOnce {
            do throws(Errno) {
                done = try image.write(pieces, at: offset, durably: false, waiting: false)
            } catch .notSupported {
                canTryWriting = false
            } catch {
                // Whatever it is, the worker meets it again.
            }
        }
        if done == count {
            wrote(transfer, extent, IOResult(count: done, error: nil), of: count)
            return
        }
        let image = image
        onWorker(for: transfer) { [done] in
            image.writeAll(pieces, at: offset, durably: durably, done: done)
        } then: { [self] movement in
            wrote(transfer, extent, movement, of: count)
        }
    }

    private func wrote(
        _ transfer: Transfer, _ extent: Extent, _ movement: IOResult, of count: Int
    ) {
        guard let error = movement.error else {
            received(transfer, processed: count, of: count, nil)
            return
        }
        let good = movement.count - movement.count % blockSize
        let failed = extent.block + UInt64((pipes.position + good) / blockSize)
        tell("writing block \(failed) failed: \(error)")
        received(transfer, processed: good, of: count, SenseData(writing: error, block: failed))
    }

    private func compare(_ transfer: Transfer, _ extent: Extent, count: Int) {
        let pieces = transfer.buffer.pieces(count: count)
        let offset = extent.byteOffset + UInt64(pipes.position)
        let image = image
        onWorker(for: transfer) {
            image.compare(pieces, at: offset)
        } then: { [self] error in
            received(transfer, processed: error == nil ? count : 0, of: count, error)
        }
    }

    /// The data of a transfer are dealt with: goes on with the next, or ends the data stage.
    ///
    /// - Parameter end: what follows the last data; by default the command is done.
    private func received(
        _ transfer: Transfer, processed: Int, of count: Int, _ error: SenseData?,
        end: (() -> Void)? = nil
    ) {
        let isLast = pipes.move(count, processed: processed)
        let isTooLong = transfer.buffer.count > count
        complete(transfer.id, isTooLong ? pipes.statusOfExcess : .completed, count)
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
    fileprivate func pieces(count: Int) -> IOVectors {
        var pieces = IOVectors()
        unsafe forEachSegment { unsafe pieces.append($0) }
        return count == self.count ? pieces : pieces.slice(from: 0, limit: count)
    }
}
