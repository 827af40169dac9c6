// SPDX-License-Identifier: Apache-2.0

internal import Platform
internal import SystemPackage

/// What a medium has lost: writes that were answered and that a flush could not bring to the disk.
///
/// The kernel tells of it once, and counts the data as written afterwards. Who was told may not have
/// listened any more, because the guest had reset the stick or the operator had taken it away. So no
/// later flush succeeds until the guest has heard of it.
final class LostWrites: Sendable {
    private let error = Locked<Errno?>(nil)

    /// Flushes an image.
    func flush(_ image: any DiskImage) throws(Errno) {
        guard !image.isReadOnly else { return }
        do throws(Errno) { try image.flush() } catch { self.error.withLock { $0 = error } }
        if let error = error.withLock({ $0 }) { throw error }
    }

    /// The guest has been told.
    func forget() { error.withLock { $0 = nil } }
}
