// SPDX-License-Identifier: Apache-2.0

/// Every bound that the controller puts on what a guest may ask, in one place.
enum XHCILimits {
    /// Link TRBs in one transfer descriptor, or before one command. A ring that has more is a loop
    /// without content, or as good as one.
    static let linkTRBsPerTD = 256
    /// TRBs of one transfer descriptor.
    static let trbsPerTD = 4096
    /// Bytes of one transfer descriptor.
    static let bytesPerTD = 64 << 20
    /// Transfers that one endpoint has at its device at a time. Control endpoints have one.
    static let transfersInFlight = 32
    /// Memory that stands in for guest memory which this process cannot see, in all transfers, or
    /// holds the data of control requests that come in pieces.
    static let bounceBytes = 256 << 20
    /// Data that one endpoint has at its device, unless a single transfer is larger.
    static let bytesInFlight = 8 << 20
    /// TRBs of transfers that one endpoint has read and not finished, unless a single transfer has
    /// more.
    static let trbsInFlight = 8192
    /// Isochronous transfers that one endpoint has at its device at a time.
    static let isochronousInFlight = 256
    /// Isochronous transfers that are read before they are due.
    static let isochronousAhead = 64
    /// Streams of one endpoint.
    static let streamsPerEndpoint = 256
    /// Doorbells of streams that wait, and those answered in one round.
    static let streamDoorbells = 16384
    static let streamDoorbellsPerPass = 256
    /// Frames that a Frame ID may be ahead (xHCI 4.11.2.5).
    static let isochronousFramesAhead: Int64 = 895
    /// Microframes by which isochronous transfers that nobody waits for may be late.
    static let isochronousDelay: Int64 = 8
    /// Microframes that are caught up with when this process was late; beyond them they are lost.
    static let isochronousLag: Int64 = 800
    /// Commands run in one call of `service`.
    static let commandsPerService = 64
    /// Rounds through completions, commands and endpoints in one call of `service`.
    static let passesPerService = 16
    /// What one endpoint does before others have their turn: TRBs read, whether or not they make a
    /// whole transfer, and pages of their data.
    static let workPerEndpoint = 64
    /// What all endpoints do in one call of `service`; the last transfer may exceed it. It is some
    /// 100 µs of work: the guest's register accesses wait that long.
    static let workPerService = 128
    /// Messages of devices that are handled in one round.
    static let messagesPerPass = 256
    /// Events that wait for room in an event ring before commands are held back. Transfers are held
    /// back as soon as one waits, so only commands can add to them.
    static let waitingEvents = 1024
    /// How long a command waits for a device to give up its transfers. FreeBSD's driver gives a
    /// command 100 ms.
    static let cancelTimeout = Duration.milliseconds(40)
    /// How long a controller that is stopped waits for devices to give up their transfers before it
    /// shows HCHalted (xHCI 5.4.1.1). Linux waits 32 ms for it.
    static let haltTimeout = Duration.milliseconds(16)
    /// TRBs of an event ring segment (xHCI 6.5).
    static let trbsPerEventSegment = 4096
}
