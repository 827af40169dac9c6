// SPDX-License-Identifier: Apache-2.0

/// The bounds of control at run time: what those who may talk to the control socket can make the
/// program hold.
public enum ServiceLimits {
    /// Devices, plugged in or waiting for their hardware.
    public static let devices = 64
    /// Bytes of what specifies a device.
    public static let specification = 8192
    /// Control clients at a time.
    public static let controlClients = 16
    /// Bytes of a request, without the end of the line.
    public static let controlLine = 65536
    /// Requests of one control client that are carried out before others have their turn.
    static let requestsPerTurn = 16
    /// How long a control client may take for the rest of a line, or for reading an answer.
    static let controlPatience: Duration = .seconds(10)
}
