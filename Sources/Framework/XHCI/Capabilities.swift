// SPDX-License-Identifier: Apache-2.0

/// The capabilities of a controller, fixed when it is created.
public struct Capabilities: Sendable {
    /// Device slots (MaxSlots), 1...255.
    public var slots = 64
    /// Root hub ports for low, full and high speed, 0...31. Their port numbers are 1...`usb2Ports`.
    public var usb2Ports = 8
    /// Root hub ports for SuperSpeed, 0...31. Their port numbers follow those of the USB 2 ports.
    public var usb3Ports = 8
    /// Interrupters (MaxIntrs), 1...16, each with its own MSI-X vector.
    public var interrupters = 8
    /// ERST Max: an event ring has up to 2^n segments, n in 0...15.
    public var eventRingSegmentsLog2 = 4

    /// MaxPSASize: a Primary Stream Array has up to 2^(n+1) entries. It equals
    /// ``XHCILimits/streamsPerEndpoint``.
    static let maxPrimaryStreamsLog2: UInt32 = 7

    public init() {}

    /// The number of root hub ports (MaxPorts).
    var ports: Int { usb2Ports + usb3Ports }

    /// Traps unless every value is in its range and there is at least one port.
    func validate() {
        precondition((1...255).contains(slots), "\(slots) device slots")
        precondition((0...31).contains(usb2Ports), "\(usb2Ports) USB 2 ports")
        precondition((0...31).contains(usb3Ports), "\(usb3Ports) USB 3 ports")
        precondition(ports > 0, "no ports")
        precondition((1...16).contains(interrupters), "\(interrupters) interrupters")
        precondition(
            (0...15).contains(eventRingSegmentsLog2),
            "2^\(eventRingSegmentsLog2) event ring segments")
    }
}
