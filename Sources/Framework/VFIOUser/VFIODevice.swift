// SPDX-License-Identifier: Apache-2.0

public import Platform
public import SystemPackage

/// What a device must answer to be served over vfio-user.
///
/// The session has checked every number that reaches these functions against ``regions`` and
/// ``interrupts``, so an implementation sees only indices, offsets and vectors that exist.
///
/// While the device itself waits in ``Connection/readMemory(into:at:)`` or
/// ``Connection/writeMemory(_:at:)``, all of these functions but ``reset()`` may be called: the
/// client's processor holds a lock until its register access is answered, and would otherwise never
/// come to answer ours. They must therefore not touch what such an access works on.
public protocol VFIODevice: AnyObject {
    /// The regions by index, as VFIO numbers them; a region of size zero is absent.
    var regions: [RegionDescription] { get }

    /// The interrupt types by index, as VFIO numbers them; a type with no vectors is absent.
    var interrupts: [InterruptDescription] { get }

    /// Reads a part of a region: appends to `bytes` until its free capacity is used up. What is left
    /// free is answered as all-ones.
    func readRegion(_ index: Int, at offset: Int, into bytes: inout OutputSpan<UInt8>)

    /// Writes a part of a region.
    func writeRegion(_ index: Int, at offset: Int, from bytes: Span<UInt8>)

    /// Sets the eventfd that an interrupt is signalled with; `nil` takes it away.
    func setInterrupt(_ index: Int, vector: Int, to event: consuming OwnedDescriptor?)

    /// The client masks, unmasks or triggers an interrupt.
    func changeInterrupt(_ index: Int, vector: Int, _ action: InterruptAction)

    /// Adds guest memory. Without a descriptor it is reached by messages, if at all.
    ///
    /// - Throws: `EEXIST` for an overlap, `EINVAL` for a range that cannot be.
    func mapMemory(
        _ file: consuming OwnedDescriptor?, offset: UInt64, at address: UInt64, count: UInt64,
        access: MemoryAccess
    ) throws(Errno)

    /// Unmaps guest memory that was mapped with exactly this range. Nothing accesses it after this
    /// returns.
    ///
    /// - Throws: `ENOENT` if there is no such range.
    func unmapMemory(at address: UInt64, count: UInt64) throws(Errno)

    /// Unmaps all guest memory. Nothing accesses it after this returns.
    func unmapAllMemory()

    /// Resets the device to its state after power-on. Nothing that the guest has requested before
    /// accesses guest memory after this returns; mappings and interrupts stay.
    func reset()
}

/// A region of a device: a base address register, the configuration space and so on.
public struct RegionDescription: Equatable, Sendable {
    public var size: UInt64
    public var isReadable: Bool
    public var isWritable: Bool

    public init(size: UInt64, isReadable: Bool = true, isWritable: Bool = true) {
        self.size = size
        self.isReadable = isReadable
        self.isWritable = isWritable
    }

    /// A region that the device does not have.
    public static let absent = RegionDescription(size: 0, isReadable: false, isWritable: false)

    /// The places of a PCI function's regions (`VFIO_PCI_*_REGION_INDEX`).
    public enum PCI {
        /// Base address registers have the indices 0...5.
        public static let baseAddresses = 0...5
        public static let expansionROM = 6
        public static let configuration = 7
        public static let vga = 8
        /// As many regions as every PCI function tells of.
        public static let count = 9
    }
}

/// One interrupt type of a device.
public struct InterruptDescription: Equatable, Sendable {
    /// `VFIO_IRQ_INFO_*`.
    public struct Flags: OptionSet, Sendable {
        public let rawValue: UInt32

        public init(rawValue: UInt32) { self.rawValue = rawValue }

        /// Bit 0: signalled by an eventfd.
        public static let eventFD = Flags(rawValue: 1 << 0)
        /// Bit 1: the client may mask and unmask it.
        public static let maskable = Flags(rawValue: 1 << 1)
        /// Bit 2: masks itself when it is raised.
        public static let automasked = Flags(rawValue: 1 << 2)
        /// Bit 3: the vectors can only be enabled as one set.
        public static let noResize = Flags(rawValue: 1 << 3)
    }

    /// Vectors of this type.
    public var count: Int
    public var flags: Flags

    public init(count: Int, flags: Flags) {
        self.count = count
        self.flags = flags
    }

    /// An interrupt type that the device does not have.
    public static let absent = InterruptDescription(count: 0, flags: [])

    /// The places of a PCI function's interrupt types (`VFIO_PCI_*_IRQ_INDEX`).
    public enum PCI {
        public static let intx = 0
        public static let msi = 1
        public static let msix = 2
        public static let error = 3
        public static let request = 4
        /// As many types as every PCI function tells of.
        public static let count = 5
    }
}

/// What a client asks of an interrupt other than to connect it.
public enum InterruptAction: Sendable {
    case mask, unmask, trigger
}

/// How a device may use guest memory.
public struct MemoryAccess: OptionSet, Sendable {
    public let rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Bit 0.
    public static let read = MemoryAccess(rawValue: 1 << 0)
    /// Bit 1.
    public static let write = MemoryAccess(rawValue: 1 << 1)
}
