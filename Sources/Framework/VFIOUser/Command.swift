// SPDX-License-Identifier: Apache-2.0

/// The command of a message. A client may send any number.
///
/// Specification: the protocol document's table "Commands".
struct Command: RawRepresentable, Hashable, Sendable {
    let rawValue: UInt16

    init(rawValue: UInt16) { self.rawValue = rawValue }

    static let version = Command(rawValue: 1)
    static let dmaMap = Command(rawValue: 2)
    static let dmaUnmap = Command(rawValue: 3)
    static let deviceGetInfo = Command(rawValue: 4)
    static let deviceGetRegionInfo = Command(rawValue: 5)
    static let deviceGetRegionIOFDs = Command(rawValue: 6)
    static let deviceGetIRQInfo = Command(rawValue: 7)
    static let deviceSetIRQs = Command(rawValue: 8)
    static let regionRead = Command(rawValue: 9)
    static let regionWrite = Command(rawValue: 10)
    /// From the server to the client.
    static let dmaRead = Command(rawValue: 11)
    /// From the server to the client.
    static let dmaWrite = Command(rawValue: 12)
    static let deviceReset = Command(rawValue: 13)
    /// In old versions of the protocol only.
    static let dirtyPages = Command(rawValue: 14)
    static let regionWriteMulti = Command(rawValue: 15)
    static let deviceFeature = Command(rawValue: 16)
    static let migrationDataRead = Command(rawValue: 17)
    static let migrationDataWrite = Command(rawValue: 18)
}

extension Command: CustomStringConvertible {
    /// The name of the command in the protocol document, without its prefix `VFIO_USER_`.
    var description: String {
        let names = [
            "VERSION", "DMA_MAP", "DMA_UNMAP", "DEVICE_GET_INFO", "DEVICE_GET_REGION_INFO",
            "DEVICE_GET_REGION_IO_FDS", "DEVICE_GET_IRQ_INFO", "DEVICE_SET_IRQS", "REGION_READ",
            "REGION_WRITE", "DMA_READ", "DMA_WRITE", "DEVICE_RESET", "DIRTY_PAGES",
            "REGION_WRITE_MULTI", "DEVICE_FEATURE", "MIG_DATA_READ", "MIG_DATA_WRITE",
        ]
        let index = Int(rawValue) - 1
        return names.indices.contains(index) ? names[index] : "command \(rawValue)"
    }
}
