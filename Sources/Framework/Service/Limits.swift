// SPDX-License-Identifier: Apache-2.0

/// The bounds of the control socket: how much of the program's memory and time its clients can use.
public enum ServiceLimits {
    /// Devices, attached or waiting for their host device.
    public static let devices = 64
    /// Bytes of a device specification.
    public static let specification = 8192
    /// Control clients at a time.
    public static let controlClients = 16
    /// Bytes of a request, without its line feed.
    public static let controlLine = 65536
    /// Requests of one control client that one turn of the loop executes.
    static let requestsPerTurn = 16
    /// The time within which a control client must complete a line it has begun, or read an answer.
    static let controlTimeout: Duration = .seconds(10)
}
