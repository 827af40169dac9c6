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
        cancellation?.cancel()
        // What the worker is at comes to its own end.
        if !isBusy {
            abandonCommand()
            advance()
        }
        let old = image
        worker.perform { () -> Errno? in
            do throws(Errno) {
                if !old.isReadOnly { try old.flush() }
                return nil
            } catch {
                return error
            }
        } then: { [self] error in
            isChangingMedium = false
            put(error == nil || force ? new ?? NoImage() : old)
            done(error)
        }
    }

    private func put(_ image: any DiskImage) {
        self.image = image
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
