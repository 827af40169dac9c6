// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// Medium changes by the operator, and flushes outside of commands.
extension MassStorageDevice {
    /// Whether the guest has locked a medium that is present (PREVENT ALLOW MEDIUM REMOVAL).
    var isRemovalLocked: Bool { unit.isMediumPresent && unit.isRemovalPrevented }
    var isRemovable: Bool { unit.identity.isRemovable }

    /// Removes the medium and inserts another one, or none.
    ///
    /// To the guest, the medium is pulled out: a command in its data stage fails, and later
    /// commands report MEDIUM NOT PRESENT. The old image is flushed first. If the flush fails, the
    /// old image is inserted again, unless `force` is set.
    ///
    /// - Parameter completion: runs on the event loop, with the error of the flush.
    func changeMedium(
        to new: (any DiskImage)?, force: Bool, completion: @escaping (Errno?) -> Void
    ) {
        precondition(!isChangingMedium, "a medium change is in progress")
        isChangingMedium = true
        unit.removeMedium()
        pipes.mediumChanged()
        cancellation?.cancel()
        // If the worker has a job, the job's completion fails the command.
        if !isBusy {
            failMediumCommand()
            advance()
        }
        flush { [self] error in
            isChangingMedium = false
            if error == nil || force {
                insert(new ?? NoImage(), LostWrites())
            } else {
                insert(image, lostWrites)
            }
            completion(error)
        }
    }

    /// Flushes the image on the worker.
    ///
    /// - Parameter completion: runs on the event loop, with the error of the flush.
    func flush(completion: @escaping (Errno?) -> Void) {
        worker.run { [image, lostWrites] () -> Errno? in
            do throws(Errno) {
                try lostWrites.flush(image)
                return nil
            } catch {
                return error
            }
        } completion: {
            completion($0)
        }
    }

    /// Waits for the jobs of the worker, then flushes the image; blocks the event loop.
    func flushNow() throws(Errno) {
        worker.waitUntilIdle()
        try lostWrites.flush(image)
    }

    private func insert(_ image: any DiskImage, _ lostWrites: LostWrites) {
        self.image = image
        self.lostWrites = lostWrites
        supportsNonblockingReads = true
        supportsNonblockingWrites = true
        guard image.byteCount > 0 else { return }
        unit.insertMedium(
            blockCount: image.byteCount / UInt64(blockSize), isReadOnly: image.isReadOnly)
    }

    /// Fails a command that accesses the medium and waits for the guest's next transfer.
    func failMediumCommand() {
        switch command {
        case .read, .write, .compare, .parameters: finish(.mediumNotPresent)
        case .reply, nil: break
        }
    }
}
