// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// The operator's hand at the stick: another medium, or none.
extension StorageDevice {
    /// Whether the guest has asked that the medium be left where it is.
    var isRemovalLocked: Bool { unit.isMediumPresent && unit.isRemovalPrevented }
    var isRemovable: Bool { unit.identity.isRemovable }

    /// Takes the medium out and puts another one in, if there is one.
    ///
    /// It is like pulling a card: a command that moves data fails, the next ones find no medium. What
    /// was answered is written to the old image first. If that fails the old image stays, unless
    /// `force` says otherwise.
    ///
    /// - Parameter done: called on the loop when all is over, with what went wrong with the old image.
    func changeMedium(
        to new: (any DiskImage)?, force: Bool, then done: @escaping (Errno?) -> Void
    ) {
        precondition(!isChangingMedium, "one change at a time")
        isChangingMedium = true
        unit.removeMedium()
        pipes.mediumChanged()
        cancellation?.cancel()
        // What the worker is at comes to its own end.
        if !isBusy {
            abandonCommand()
            advance()
        }
        flush { [self] error in
            isChangingMedium = false
            if error == nil || force {
                put(new ?? NoImage(), LostWrites())
            } else {
                put(image, lostWrites)
            }
            done(error)
        }
    }

    /// Flushes the image on the worker; `done` is called on the loop with what went wrong.
    func flush(then done: @escaping (Errno?) -> Void) {
        worker.run { [image, lostWrites] () -> Errno? in
            do throws(Errno) {
                try lostWrites.flush(image)
                return nil
            } catch {
                return error
            }
        } completion: {
            done($0)
        }
    }

    /// The same, with the loop standing still.
    func flushNow() throws(Errno) {
        worker.waitUntilIdle()
        try lostWrites.flush(image)
    }

    private func put(_ image: any DiskImage, _ lostWrites: LostWrites) {
        self.image = image
        self.lostWrites = lostWrites
        canTryReading = true
        canTryWriting = true
        guard image.byteCount > 0 else { return }
        unit.insertMedium(
            blockCount: image.byteCount / UInt64(blockSize), isReadOnly: image.isReadOnly)
    }

    /// Fails a command that needs the medium and waits for the guest's next transfer.
    func abandonCommand() {
        switch command {
        case .read, .write, .compare, .parameters: finish(.mediumNotPresent)
        case .reply, nil: break
        }
    }
}
