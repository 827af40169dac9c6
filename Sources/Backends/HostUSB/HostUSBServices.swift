// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Platform

/// The libusb context and the threads that all `host:` backends of one program share.
///
/// The backends share ownership: the first one makes this object, which lives as long as the last
/// one (``BackendKit/SharedResources``).
final class HostUSBServices {
    /// Runs the blocking calls of all devices.
    let threads: ThreadPool
    private let loop: any EventLoop
    private weak var sharedContext: LibUSBContext?

    init(loop: any EventLoop) throws(BackendError) {
        self.loop = loop
        do {
            threads = try ThreadPool(loop: loop)
        } catch {
            throw BackendError("cannot start a thread for devices of the host: \(error)")
        }
    }

    /// Returns the context for a further backend.
    ///
    /// - Parameter hasHotplug: whether libusb notices new devices. If not, a context knows only the
    ///   devices that were connected when it was made, so each backend gets its own context.
    func context(hasHotplug: Bool = SystemFiles.hasUdev) throws(LibUSBError) -> LibUSBContext {
        if hasHotplug, let sharedContext { return sharedContext }
        let context = try LibUSBContext(loop: loop)
        if hasHotplug { sharedContext = context }
        return context
    }
}
