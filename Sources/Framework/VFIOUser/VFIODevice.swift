// SPDX-License-Identifier: Apache-2.0

public import Platform
public import SystemPackage

/// A device that is served over vfio-user.
///
/// The session checks the numbers in a request against ``regions`` and ``interrupts``, so the
/// functions are called with existing indices, offsets and vectors only. All are called on the
/// event loop's thread.
///
/// While the device waits in ``Connection/readMemory(into:at:)`` or
/// ``Connection/writeMemory(_:at:)``, all functions except ``reset()`` may be called: a client that
/// waits for the reply to a register access sends no reply itself. These functions must not use the
/// state that the waiting code works on.
public protocol VFIODevice: AnyObject {
    /// The regions by VFIO's index; a region of size 0 is absent.
    var regions: [RegionDescription] { get }

    /// The interrupt types by VFIO's index; a type without vectors is absent.
    var interrupts: [InterruptDescription] { get }

    /// Reads from a region: appends to `bytes` until it is full. The client gets 0xff for bytes
    /// that are not appended.
    func readRegion(_ index: Int, at offset: Int, into bytes: inout OutputSpan<UInt8>)

    /// Writes to a region.
    func writeRegion(_ index: Int, at offset: Int, from bytes: Span<UInt8>)

    /// Sets the eventfd that signals an interrupt; `nil` disconnects the interrupt.
    func setInterrupt(_ index: Int, vector: Int, to event: consuming OwnedDescriptor?)

    /// Masks, unmasks or triggers an interrupt.
    func changeInterrupt(_ index: Int, vector: Int, _ action: InterruptAction)

    /// Maps guest memory.
    ///
    /// - Parameters:
    ///   - file: contains the memory; without it the memory is accessed by messages.
    ///   - offset: the position of the memory in the file, in bytes.
    ///   - address: the guest address.
    ///   - count: the length in bytes.
    ///   - access: the permitted accesses.
    /// - Throws: `EEXIST` if the range overlaps another, `EINVAL` if the range or the file is not
    ///   valid, and other errors of the kernel.
    func mapMemory(
        _ file: consuming OwnedDescriptor?, offset: UInt64, at address: UInt64, count: UInt64,
        access: MemoryAccess
    ) throws(MemoryMapError)

    /// Unmaps guest memory that was mapped with exactly this range. The device does not access it
    /// after the return.
    ///
    /// - Throws: `ENOENT` if no memory was mapped with this range.
    func unmapMemory(at address: UInt64, count: UInt64) throws(Errno)

    /// Unmaps all guest memory. The device does not access it after the return.
    func unmapAllMemory()

    /// Resets the device to its state after power-on. After the return no earlier request of the
    /// guest accesses guest memory. Mappings and eventfds stay.
    func reset()
}

/// A region of a device, such as a base address register or the configuration space.
public struct RegionDescription: Equatable, Sendable {
    /// The size in bytes.
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

    /// The indices of a PCI function's regions (`VFIO_PCI_*_REGION_INDEX`).
    public enum PCI {
        /// The base address registers.
        public static let baseAddresses = 0...5
        public static let expansionROM = 6
        public static let configuration = 7
        public static let vga = 8
        /// The number of regions that every PCI function describes.
        public static let count = 9
    }
}

/// An interrupt type of a device, such as MSI-X.
public struct InterruptDescription: Equatable, Sendable {
    /// The properties of an interrupt type (`VFIO_IRQ_INFO_*`).
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

    /// The number of vectors.
    public var count: Int
    public var flags: Flags

    public init(count: Int, flags: Flags) {
        self.count = count
        self.flags = flags
    }

    /// An interrupt type that the device does not have.
    public static let absent = InterruptDescription(count: 0, flags: [])

    /// The indices of a PCI function's interrupt types (`VFIO_PCI_*_IRQ_INDEX`).
    public enum PCI {
        public static let intx = 0
        public static let msi = 1
        public static let msix = 2
        public static let error = 3
        public static let request = 4
        /// The number of types that every PCI function describes.
        public static let count = 5
    }
}

/// An action of DEVICE_SET_IRQS on an interrupt.
public enum InterruptAction: Sendable {
    case mask, unmask, trigger
}

/// The accesses to guest memory that a client permits (flags of DMA_MAP).
public struct MemoryAccess: OptionSet, Sendable {
    public let rawValue: UInt32

    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Bit 0: the device may read the memory.
    public static let read = MemoryAccess(rawValue: 1 << 0)
    /// Bit 1: the device may write the memory.
    public static let write = MemoryAccess(rawValue: 1 << 1)
}
