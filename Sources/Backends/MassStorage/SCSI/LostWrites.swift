// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// The error of acknowledged writes that did not reach the disk.
///
/// The kernel reports a writeback error to one flush only and considers the data written
/// afterwards. The command of that flush may have been aborted, because the guest has reset the
/// device or the operator has detached it. So every later flush fails until the error has been
/// reported to the guest.
final class LostWrites: Sendable {
    private let error = Locked<Errno?>(nil)

    /// Flushes an image.
    ///
    /// - Throws: the error of this flush, or of an earlier one that has not been reported.
    func flush(_ image: any DiskImage) throws(Errno) {
        guard !image.isReadOnly else { return }
        do throws(Errno) { try image.flush() } catch { self.error.withLock { $0 = error } }
        if let error = error.withLock({ $0 }) { throw error }
    }

    /// Clears the error after it has been reported to the guest.
    func clear() { error.withLock { $0 = nil } }
}
