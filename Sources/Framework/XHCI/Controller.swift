// SPDX-License-Identifier: Apache-2.0

public import DMA
public import Logging
public import USB

/// An xHCI 1.1 host controller.
///
/// Register accesses only change the register file and mark work; ``service(now:)`` does the work:
/// it is the only function that touches guest memory or devices. So a register can be read and
/// written at any moment, even while `service` waits for a piece of guest memory.
public final class Controller: USBBus {
    /// Bytes of the register space (BAR 0).
    public static let registerSpaceSize = 0x4000

    public init(
        memory: GuestMemory, interrupts: any InterruptSink, capabilities: Capabilities = .init(),
        logger: Logger
    ) {}

    /// Reads registers, at any offset and width; what lies outside reads as zero.
    public func read(at offset: Int, into bytes: inout OutputSpan<UInt8>, now: Duration) {}

    /// Writes registers, at any offset and width.
    public func write(at offset: Int, from bytes: Span<UInt8>, now: Duration) {}

    /// Does all work that is due and returns the time at which there will be more, if known.
    ///
    /// Called at the end of each turn of the event loop; costs next to nothing when nothing is due.
    public func service(now: Duration) -> Duration? { nil }

    /// Returns to the state after power-on; devices stay plugged in. Memory and interrupts are not
    /// touched. It takes effect at once, or when a `service` in progress ends.
    public func reset() {}

    /// Gives up transfers whose data lies in a range that the client takes away.
    public func cancelTransfers(touching start: GuestAddress, count: UInt64) {}

    public func attach(_ device: any USBDevice) throws(AttachError) {}

    public func detach(_ device: any USBDevice) {}
}
